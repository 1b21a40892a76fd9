"""Complete runs meet a target, such as target.bytes, that replaces the ratio.

The checkpoint does not exceed the target, and the report contains the target and the reached value.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import flap
from flap.pipeline import run
from flap.results import Report
from flap.results.report_tables import tables
from tests.cases import random_model, tiny_model
from tests.helpers.marks import quick
from tests.helpers.runs import composed, tiny
from tests.models.families.test_other_names import TestFalcon as Falcon

Run = Callable[..., Report]
# The number of parameters of a KV head with its query heads, and of a neuron, in the tiny model.
HEAD, NEURON = 1536, 96


@pytest.fixture
def run_target(base: list[str], tmp_path: Path) -> Run:
    """Return a function that runs flap on the tiny model with a target, but no evaluation."""

    def run_in(*overrides: str) -> Report:
        fixed = ["model.device=cpu", "model.dtype=float32", "eval=none", "run_name=tiny"]
        return run(composed(*base[:5], *fixed, *overrides), tmp_path / "run")

    return run_in


def saved(report: Report) -> dict[str, torch.Tensor]:
    return load_file(Path(report.checkpoint or "") / "model.safetensors")


@pytest.mark.parametrize("compensation", ["bias", "linear", "none"])
def test_the_file_has_the_bytes_that_were_asked_for(run_target: Run, compensation: str) -> None:
    report = run_target("target.bytes=120e3", f"compensation={compensation}")
    size = sum(tensor.nbytes for tensor in saved(report).values())
    assert 120_000 - 4 * NEURON < size <= 120_000
    assert report.target == {
        "bytes": {
            "asked": 120_000,
            "dense": 4 * report.parameters["total_before"],
            "realised": size,
        }
    }
    assert "requested" not in report.ratio and report.config["ratio"] is None
    written = json.loads((Path(report.checkpoint or "").parent / "report.json").read_text())
    assert written["target"] == report.target
    [row] = [row for row in tables(report)[-1].rows if row[0] == "target.bytes"]
    assert row[2] == f"{size:,} of 120,000 asked"


@pytest.mark.parametrize("structure", quick(1, ["UL-UM", "UL-MM", "AL-MM"]))
def test_the_biases_of_a_stock_checkpoint_count(run_target: Run, structure: str) -> None:
    report = run_target("target.parameters=30e3", f"structure={structure}")
    count = sum(tensor.numel() for tensor in saved(report).values())
    assert 30_000 - HEAD < count <= 30_000
    assert report.target["parameters"]["realised"] == report.parameters["total_after"] == count
    assert (report.loads_with == "stock transformers") == (structure == "UL-UM")


@pytest.mark.parametrize(
    ("asked", "form"), [(40_400, "flap, or trust_remote_code=True (biases of"), (41e3, "stock")]
)
def test_one_width_that_a_plan_by_layer_ends_at_stays_within_it(
    run_target: Run, asked: float, form: str
) -> None:
    report = run_target(f"target.parameters={asked}", "round_to=32")
    assert len({json.dumps(layer) for layer in report.layers}) == 1
    assert report.loads_with.startswith(form) and report.parameters["total_after"] <= asked
    assert (
        sum(tensor.numel() for tensor in saved(report).values()) == report.parameters["total_after"]
    )


@pytest.mark.parametrize("structure", ["AL-AM", "UL-UM"])
def test_weights_and_the_caches_of_several_sequences_are_within_the_memory(
    run_target: Run, structure: str
) -> None:
    options = "target.context=100", "target.sequences=3", f"structure={structure}"
    report = run_target("target.memory=260e3", *options)
    model = AutoModelForCausalLM.from_pretrained(report.checkpoint, trust_remote_code=True)
    cache = model(torch.arange(100).repeat(3, 1) % 90, use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    size += sum(tensor.nbytes for tensor in saved(report).values())
    unit = 4 * NEURON if structure == "AL-AM" else 4 * (4 * HEAD + 4 * 2 * 3 * 100 * 8)
    assert 260e3 - unit < size == report.target["memory"]["realised"] <= 260e3


@pytest.mark.parametrize("experts", ["true", "false"])
@pytest.mark.parametrize("architecture", quick(1, ["mixtral", "qwen3_moe"]))
def test_active_parameters(
    architecture: str, experts: str, tokenizer, text_file: Path, tmp_path: Path
) -> None:
    """The number of parameters that are active for a token stays within the target.

    The router selects two experts of each layer for a token. With structure.experts=true, the run
    removes whole experts. With structure.experts=false, it removes neurons of the experts.
    """
    tiny_model(architecture).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    compensation = "bias" if experts == "false" else "none"
    options = [
        f"structure.experts={experts}",
        f"compensation={compensation}",
        "target.active_parameters=26e3",
    ]
    report = run(
        composed(*tiny(tmp_path / "model", text_file), *options, "ratio=null"), tmp_path / "run"
    )
    parts = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    active = sum(one.numel() * share_of_token(parts, name) for name, one in parts.items())
    assert 26e3 - HEAD < active == report.target["active_parameters"]["realised"] <= 26e3


def share_of_token(parts: dict[str, torch.Tensor], name: str) -> float:
    """Return the share of a tensor that is active for a token, if the router selects 2 experts.

    A checkpoint stores either all experts in one tensor, or each expert in a separate tensor.
    """
    layer, is_expert, rest = name.partition(".experts.")
    if not is_expert:
        return 1.0
    alone = {
        one.removeprefix(f"{layer}.experts.").split(".")[0]
        for one in parts
        if one.startswith(f"{layer}.experts.")
    }
    return 2 / (len(alone) if rest[0].isdigit() else len(parts[name]))


def test_a_cache_that_holds_a_copy_for_each_query_head_is_counted_so(
    tokenizer, text_file: Path
) -> None:
    model = random_model(Falcon.configs["gqa"])
    text = {"dataset": str(text_file), "num_samples": 4, "seq_len": 16}
    report = flap.prune(model, tokenizer, target={"kv_cache_bytes": 15e3, "context": 40}, **text)
    cache = model(torch.arange(3, 43)[None], use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert size == report.target["kv_cache_bytes"]["realised"] <= 15_000
