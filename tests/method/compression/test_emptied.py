"""Blocks that are removed as a whole: the bias of their output projection replaces them, also after a reload."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flap.checkpoint.convert import become_checkpointable
from flap.method.allocation import ALAM, LayerPlan, PruningPlan, price
from flap.method.compression import mask_layer
from flap.method.search import Search
from flap.models import Resident, adapt
from tests.cases import tokens
from tests.helpers.compressed import COMPENSATIONS, calibrated, changed, logits
from tests.helpers.ratios import allocated, budget_of, random_scores

ALL = tuple(range(56))
# The first layer without attention (caches count tokens there), one without an MLP, one without either, one thinner.
PLAN = PruningPlan((LayerPlan((), ALL), LayerPlan((0, 1), ()), LayerPlan((), ()), LayerPlan((1, 3), ALL[:20])))
ARCHITECTURES = ["llama-gqa", "mistral-mha-tied", "qwen2-gqa-tied", "qwen3-gqa"]


def emptied(architecture: str, compensation: str) -> PreTrainedModel:
    model, known = calibrated(architecture, biased=False)
    return changed(model, PLAN, COMPENSATIONS[compensation], known)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sliced_is_masked(architecture: str, compensation: str) -> None:
    model, known = calibrated(architecture, biased=False)
    masked = changed(model, PLAN, COMPENSATIONS[compensation], known, mask_layer)
    sliced = emptied(architecture, compensation)
    widths = [tuple(block.num_units for block in adapt(sliced).blocks(i)) for i in range(4)]
    assert widths == [(0, 56), (2, 0), (0, 0), (2, 20)]
    assert torch.allclose(logits(sliced), logits(masked), atol=1e-4)
    assert (logits(sliced) - logits(model)).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_generates_and_reloads(architecture: str, tmp_path: Path) -> None:
    model = emptied(architecture, "bias")
    expected = logits(model)
    prompt = tokens()[:2, :6]
    options = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    without = model.generate(prompt, use_cache=False, **options)
    assert model.generate(prompt, **options).tolist() == without.tolist()
    placed = Resident(copy.deepcopy(model))
    assert "a layer has no attention heads" in become_checkpointable(placed)
    placed.write(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(reloaded), expected, atol=1e-5)
    for cache in (None, "static"):
        assert reloaded.generate(prompt, cache_implementation=cache, **options).tolist() == without.tolist()


def test_the_ranking_may_empty_what_scores_lowest() -> None:
    budget = budget_of("llama-gqa", 0.3)
    scores = random_scores(budget)
    low = scores.layers[1]._replace(attention=torch.zeros_like(scores.layers[1].attention))
    scores = type(scores)((scores.layers[0], low, *scores.layers[2:]), (1.0,) * 4)
    for min_heads, expected in ((0, 0), (1, 1)):
        structure = ALAM(scale="relative", min_heads=min_heads)
        structure.check(budget)
        assert len(structure.allocate(scores, budget).layers[1].attention) == expected


def test_the_search_tries_whole_blocks() -> None:
    budget = price(adapt(calibrated("llama-gqa", biased=False)[0]), 0.5)
    scores = random_scores(budget)
    search = Search(min_heads=0, min_neurons=0, levels=[0.125, 0.25, 0.5, 0.75])
    trials = search.trials(scores.layers[0], budget.layers[0])
    assert {len(trial.attention) for trial in trials} == {0, 1, 2, 3, 4} and any(not trial.mlp for trial in trials)
    plan = allocated(search, scores, budget)
    assert any(not layer.attention for layer in plan.layers)  # the first layers cost least
