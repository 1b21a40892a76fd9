"""Exported graphs give the same results in ONNX Runtime and OpenVINO as in transformers."""

import sys
from functools import partial
from itertools import cycle, product
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.export.graph import export_graph
from tests.helpers.engine_cases import (
    CELLS,
    EVERY_FAMILY,
    FAMILIES,
    FORMS,
    PROMPT,
    assert_refused,
    documented,
    expected_logprobs,
    family_checkpoint,
)
from tests.helpers.graph_engines import ENGINES, greedy, logprobs

# Families that are tested here, although the table of docs/exports.md does not contain them.
ALSO = ("gpt2", "gpt_oss", "phi")
OTHERS = sorted({*FAMILIES, *ALSO} - {"llama"})
# Tracing a model takes ten seconds, and most of this work is the same for the formats onnx and
# openvino. So without --thorough, each family is tested in only one of the two formats: the first
# family in one format, the second family in the other format, and so on. gpt_oss, which has
# experts, is tested in both formats, because experts are traced differently for each format.
THOROUGH = {*zip(OTHERS, cycle(ENGINES), strict=False)} - {("gpt_oss", kind) for kind in ENGINES}
CASES = [
    pytest.param(*case, marks=pytest.mark.thorough) if case in THOROUGH else case
    for case in product(OTHERS, ENGINES)
]


@pytest.mark.long
@pytest.mark.parametrize(("form", "kind"), product(FORMS, ENGINES))
def test_same_logits(
    form: str, kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    llama = family_checkpoint("llama", form, tokenizer, tmp_path / "pruned", layers=2)
    folder = export_graph(llama.directory, kind)
    expected = expected_logprobs(llama)
    begin = ENGINES[kind](folder)
    for at_once in (1, 10, PROMPT.shape[1]):
        assert (logprobs(begin(), PROMPT, at_once) - expected).abs().max() <= 1e-3
    assert greedy(begin(), PROMPT, 12, llama.model.config.eos_token_id) == llama.greedy(PROMPT)
    for file in folder.glob("*.onnx"):
        assert b"site-packages" not in file.read_bytes(), "a path of this machine"


@pytest.mark.long
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_families_by_layer(
    model_type: str, kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pruned = family_checkpoint(model_type, "by layer", tokenizer, tmp_path / "pruned", layers=2)
    begin = ENGINES[kind](export_graph(pruned.directory, kind))
    assert (logprobs(begin(), PROMPT, 10) - expected_logprobs(pruned)).abs().max() <= 1e-3
    assert greedy(begin(), PROMPT, 12, pruned.model.config.eos_token_id) == pruned.greedy(PROMPT)


@pytest.mark.parametrize("engine", ["ONNX Runtime", "OpenVINO"])
def test_the_table_says_what_is_held(engine: str) -> None:
    assert documented(engine) == {
        cell: "yes" if cell[0] == "llama" else "by layer" for cell in CELLS
    }


@pytest.mark.parametrize(("kind", "module"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_without_its_packages(
    kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = (
        rf"^{kind}: needs {module}, which is not installed; pip install '\.\[{kind}\]' in a clone"
    )
    assert_refused(partial(export_graph, kind=kind), tmp_path, line)


def test_a_model_that_sees_images(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    EVERY_FAMILY["llava"].configs["mha"].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_refused(
        partial(export_graph, kind="onnx"),
        tmp_path,
        "^onnx: expected a text model; llava also takes images$",
    )


def test_no_checkpoint(tmp_path: Path) -> None:
    assert_refused(
        partial(export_graph, kind="onnx"), tmp_path, r"no checkpoint here, config\.json is missing"
    )
