"""Whole runs on a model that an earlier run left without an attention here and an MLP there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.convert import become_checkpointable
from flap.models import Resident
from flap.results import Report
from tests.method.compression.test_emptied import emptied


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("thinned")
    placed = Resident(emptied("llama-gqa", "bias"))
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
    "search": ("structure=search", "structure.min_heads=0", "compensation=linear", "metric=OBS"),
    "bytes": ("ratio=null", "target.bytes=65000", "structure.min_neurons=0"),
    "cache": ("ratio=null", "target.kv_cache_bytes=6000", "target.context=32"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_pruned_again(choice: str, thinned: Path, run_tiny: Callable[..., Report], tmp_path: Path) -> None:
    report = run_tiny(tmp_path, f"model.path={thinned}", *CHOICES[choice])
    if "target" not in str(CHOICES[choice]):
        assert report.ratio["realised_decoder"] == pytest.approx(0.4, abs=0.04)
    for name, target in report.target.items():
        assert target["realised"] <= target["asked"], name
    before, after = report.layers_before, report.layers
    assert [layer["kv_heads"] for layer in before] == [0, 2, 0, 2]
    assert [layer["neurons"] for layer in before] == [56, 0, 0, 20]
    assert all(new[key] <= old[key] for old, new in zip(before, after, strict=True) for key in old)
