"""Whole experts leave and those that stay become narrower: the second run prunes the checkpoint of the first."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.models import adapt
from flap.pipeline import run
from flap.results import Report
from tests.cases import random_model
from tests.helpers.runs import composed, tiny
from tests.models.test_whole_experts import EXPERTS, config_of

EXPERTS_LEAVE, NEURONS_LEAVE = ("structure.experts=true", "ratio=0.2"), ("ratio=0.3",)
ORDERS = {"experts first": (EXPERTS_LEAVE, NEURONS_LEAVE), "neurons first": (NEURONS_LEAVE, EXPERTS_LEAVE)}


@pytest.mark.parametrize(
    ("order", "family", "placement"),
    [("experts first", "mixtral", "device"), ("neurons first", "qwen3_next", "stream")],
)
def test_the_second_run_takes_the_other_unit(
    order: str, placement: str, family: str, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    dense = random_model(config_of(family))
    dense.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    first, second = ORDERS[order]

    def pruned(model: Path, name: str, *options: str) -> Report:
        places = [f"cache_dir={tmp_path / 'cache'}", f"model.placement={placement}", "eval.perplexity.max_tokens=64"]
        return run(composed(*tiny(model, text_file), *places, *options), tmp_path / name)

    one = pruned(tmp_path / "dense", "one", *first)
    two = pruned(tmp_path / "one" / "checkpoint", "two", *second)
    assert two.parameters["total_before"] == one.parameters["total_after"]
    model, neurons = load(tmp_path / "two" / "checkpoint"), adapt(dense).mlp(0).columns_UC.numel() // EXPERTS
    assert sum(parameter.numel() for parameter in model.parameters()) == two.parameters["total_after"]
    mlps = [adapt(model).mlp(i) for i in range(3)]
    assert sum(len(mlp.members) for mlp in mlps) < 3 * EXPERTS
    assert all(mlp.num_units // len(mlp.members) <= neurons for mlp in mlps)
    assert any(mlp.num_units // len(mlp.members) < neurons for mlp in mlps)
