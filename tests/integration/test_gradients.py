"""Complete runs on the tiny model with method=llm_pruner, whose metric needs gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import flap
from flap.method.allocation import PruningPlan
from flap.pipeline import run
from flap.results import Report
from tests.cases import tiny_model
from tests.helpers.ranks import in_ranks
from tests.helpers.runs import composed

ENDS = ("structure.keep_first=1", "structure.keep_last=1")
Pruned = Callable[..., Report]


@pytest.fixture
def pruned(base: list[str], tmp_path: Path) -> Pruned:
    """Return a function that does a run with method=llm_pruner in a given subfolder."""
    cache = f"cache_dir={tmp_path / 'cache'}"

    def pruned_in(folder: str, *arguments: str) -> Report:
        config = composed("method=llm_pruner", *base, cache, *arguments)
        return run(config, tmp_path / folder)

    return pruned_in


@pytest.mark.long
def test_gradients_serve_every_ratio_and_structure(pruned: Pruned, tmp_path: Path) -> None:
    first = pruned("first", *ENDS)
    assert first.statistics_cache == "miss"
    assert pruned("second", *ENDS, "ratio=0.3").statistics_cache == "hit"
    assert pruned("third", "structure=search", "structure.tokens=32").statistics_cache == "hit"
    # WIFV uses statistics without gradients. Such statistics are not in the cache yet.
    assert pruned("plain", *ENDS, "metric=WIFV").statistics_cache == "miss"

    budget = first.ratio["requested"]
    assert first.ratio["realised_decoder"] == pytest.approx(budget, abs=0.01)
    outer_before = first.layers_before[0], first.layers_before[-1]
    assert (first.layers[0], first.layers[-1]) == outer_before
    for layer, before in zip(first.layers[1:-1], first.layers_before[1:-1], strict=True):
        assert layer["neurons"] < before["neurons"]


def test_the_pruned_model_can_be_trained(pruned: Pruned) -> None:
    report = pruned("run", *ENDS, "recover=lora", "recover.tokens=128", "recover.seq_len=16")
    assert (report.recovery["choice"], report.recovery["tokens"]) == ("lora", 128)


def prune_in_rank(arguments: list[str], folder: Path) -> None:
    run(composed(*arguments), folder / "run")


@pytest.mark.long
def test_two_processes_keep_the_units_that_one_keeps(
    pruned: Pruned, base: list[str], tmp_path: Path
) -> None:
    arguments = ["method=llm_pruner", *base, *ENDS, "use_cache=false", "model.device=cpu"]
    assert in_ranks(2, prune_in_rank, arguments, tmp_path / "two") == [0, 0]
    pruned("one", *ENDS, "use_cache=false")
    plans = [PruningPlan.load(tmp_path / name / "plan.json") for name in ("one", "two/run")]
    assert plans[0] == plans[1]


def test_a_loaded_model_keeps_no_gradients(
    tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    model = tiny_model("llama-gqa").requires_grad_(False)
    text = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
    flap.prune(model, tokenizer, metric="taylor", **text)
    for parameter in model.parameters():
        assert parameter.grad is None and not parameter.requires_grad


def test_weights_without_gradients_are_refused(
    tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    with torch.inference_mode():
        model = tiny_model("llama-gqa")
    text = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
    with pytest.raises(ValueError, match=r"^model: its weights were loaded in torch\.inference"):
        flap.prune(model, tokenizer, metric="taylor", **text)
