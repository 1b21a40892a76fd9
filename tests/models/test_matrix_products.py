"""Products of a model in bfloat16, in float32: where, which, and what a run says of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from flap.models.matrix_products import FEWEST_ROWS, compute_dtype, products_in
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.runs import composed, tiny

PLAIN = {"architecture": "x86_64", "avx512_f": True, "amx_bf16": False}
CPU, HALF, SINGLE = torch.device("cpu"), torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "device", "capabilities", "computed"),
    [
        (HALF, CPU, PLAIN, SINGLE),
        (HALF, CPU, {**PLAIN, "amx_bf16": True}, HALF),
        (HALF, CPU, {**PLAIN, "avx512_bf16": True}, HALF),
        (HALF, CPU, {"architecture": "aarch64", "neon": True}, SINGLE),
        (HALF, CPU, {"architecture": "aarch64", "bf16": True}, HALF),
        (HALF, CPU, {}, HALF),  # an older torch tells nothing
        (HALF, torch.device("cuda:0"), PLAIN, HALF),
        (torch.float16, CPU, PLAIN, torch.float16),
        (SINGLE, CPU, PLAIN, SINGLE),
    ],
)
def test_products_are_in_float32_where_the_processor_has_none_in_bfloat16(
    dtype: torch.dtype, device: torch.device, capabilities: dict[str, object], computed: torch.dtype
) -> None:
    assert compute_dtype(dtype, device, capabilities) == computed


def test_products_of_enough_rows_are_rounded_once() -> None:
    draw = torch.Generator().manual_seed(0)
    many, few, weight = (torch.randn(n, 64, generator=draw).bfloat16() for n in (FEWEST_ROWS, FEWEST_ROWS - 1, 48))
    expected = many.float() @ weight.float().mT
    before, no_bias = functional.linear(few, weight), torch.zeros(48, dtype=HALF)
    with products_in(SINGLE, HALF):
        found = [functional.linear(many, weight), many @ weight.mT, torch.addmm(no_bias, many, weight.mT)]
        assert torch.equal(functional.linear(few, weight), before)
        assert (many.float() @ weight.float().mT).dtype == SINGLE
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(many.float(), weight.float()).dtype == HALF
    assert all(torch.equal(one, expected.bfloat16()) for one in found)


def test_a_model_computes_the_same_but_for_rounding() -> None:
    model, tokens_NT = tiny_model("llama-gqa").bfloat16(), torch.arange(64).reshape(2, 32)
    with torch.no_grad():
        expected = model(input_ids=tokens_NT).logits.float()
        with products_in(SINGLE, HALF):
            found = model(input_ids=tokens_NT).logits
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.02 * expected.abs().max().item())


def test_a_run_says_what_it_was_computed_in_and_keeps_it_apart(
    text_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: PLAIN)
    tiny_model("llama-gqa").bfloat16().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    inputs = (*tiny(tmp_path / "model", text_file), "model.device=cpu", f"cache_dir={tmp_path / 'cache'}")
    names = ("auto", "bfloat16")
    auto, named = (run(composed(*inputs, f"model.dtype={name}"), tmp_path / name) for name in names)
    types = [(report.dtype, report.computed_in) for report in (auto, named)]
    assert types == [("torch.bfloat16", "torch.float32"), ("torch.bfloat16", "torch.bfloat16")]
    assert named.statistics_cache == "miss" and named.evaluation != auto.evaluation
    told = ["float32, because bfloat16 is slow" in (tmp_path / name / "report.md").read_text() for name in names]
    assert told == [True, False]
    streamed = run(composed(*inputs, "model.placement=stream"), tmp_path / "stream")
    assert streamed.computed_in == "torch.float32" and streamed.statistics_cache == "hit"
    assert streamed.evaluation["pruned"] == pytest.approx(auto.evaluation["pruned"], rel=1e-3)
    saved = load_file(tmp_path / "auto" / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {HALF}
