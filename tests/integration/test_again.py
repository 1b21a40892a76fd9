"""Whole runs on a model that an earlier run left with few heads here and few neurons there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.convert import become_checkpointable
from flap.method.allocation import LayerPlan, PruningPlan
from flap.models import Resident
from flap.results import Report
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed

HEADS, NEURONS = [4, 2, 2, 2], [56, 16, 24, 20]
PLAN = PruningPlan(tuple(LayerPlan(*(tuple(range(n)) for n in kept)) for kept in zip(HEADS, NEURONS, strict=True)))


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("thinned")
    model, known = calibrated("llama-gqa", biased=False)
    placed = Resident(changed(model, PLAN, COMPENSATIONS["bias"], known))
    become_checkpointable(placed)
    placed.write(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHOICES = {
    "AL-AM": ("metric=OBS", "eval=[perplexity,divergence]"),
    "stream": ("model.placement=stream", "metric=OBS", "compensation=linear", "structure.scale=relative"),
    "UL-UM": ("structure=UL-UM", "round_to=8", "checkpoint.save=true"),
    "UL-MM": ("structure=UL-MM", "structure.multiple_of_heads=2", "mask_only=true"),
    "AL-MM": ("structure=AL-MM", "structure.remove_heads=2"),
    "search": ("structure=search", "compensation=linear", "metric=OBS"),
    "bytes": ("ratio=null", "target.bytes=65000"),
    "cache": ("ratio=null", "target.kv_cache_bytes=12000", "target.context=32"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_pruned_again(choice: str, thinned: Path, run_tiny: Callable[..., Report], tmp_path: Path) -> None:
    report = run_tiny(tmp_path, f"model.path={thinned}", *CHOICES[choice])
    if "target" not in str(CHOICES[choice]):
        assert report.ratio["realised_decoder"] == pytest.approx(0.4, abs=0.04)
    for name, target in report.target.items():
        assert target["realised"] <= target["asked"], name
    before, after = report.layers_before, report.layers
    assert [layer["kv_heads"] for layer in before] == HEADS
    assert [layer["neurons"] for layer in before] == NEURONS
    assert all(new[key] <= old[key] for old, new in zip(before, after, strict=True) for key in old)
