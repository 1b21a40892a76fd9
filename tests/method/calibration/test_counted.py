"""Tokens that do not count: as windows that end before them, as nothing that comes later changes a token's states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data.counted import marked
from flap.method.calibration import Calibration, LayerStatistics
from flap.models import PlacedModel, Resident, adapt
from tests.cases import random_model, tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.models.families import test_mixtures as mixtures
from tests.models.families import test_other_names as names

KEPT = 13  # of a window's tokens


def ends_marked() -> Tensor:
    """Windows of whose tokens the last ones do not count."""
    tokens_NT = tokens()
    return marked(tokens_NT, (torch.arange(tokens_NT.shape[1]) < KEPT).expand_as(tokens_NT))


def observed(placed: PlacedModel, windows_NT: Tensor, covariance: bool) -> list[LayerStatistics]:
    """In batches of unequal numbers of windows, and with covariances apart for those held out."""
    calibration = Calibration(placed, windows_NT, 4, [], counted="answers")
    if not covariance:
        return calibration.observe()
    return [one for _, one in calibration.visit("score", covariance=True) if one is not None]


def assert_same(found: LayerStatistics, expected: LayerStatistics) -> None:
    assert found.inverse_power == pytest.approx(expected.inverse_power, rel=1e-5)
    assert found.routed_power == pytest.approx(expected.routed_power, rel=1e-5)
    pairs = zip((*found.blocks, found.routed), (*expected.blocks, expected.routed), strict=True)
    for a, b in [pair for blocks in pairs for pair in zip(*blocks, strict=True)]:
        assert a.num_tokens == b.num_tokens
        torch.testing.assert_close(a.mean_I, b.mean_I, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.deviation_I, b.deviation_I, rtol=1e-4, atol=1e-6)
        for own, other in zip(a.parts or (a,), b.parts or (b,), strict=True):
            assert (own.comoments is None) == (other.comoments is None)
            if own.comoments is not None and other.comoments is not None:
                torch.testing.assert_close(
                    own.comoments.diagonal(), other.comoments.diagonal(), rtol=1e-3, atol=1e-5
                )


CASES = [
    *((tiny_model, name, False) for name in ("llama-gqa", "qwen3_5", "gemma4", "mixtral")),
    *((tiny_model, name, True) for name in ("mixtral", "qwen3_moe")),
    *((random_model, mixtures.TestLlama4.configs["mha"], whole) for whole in (False, True)),
    (random_model, next(iter(mixtures.TestDeepseekV3.configs.values())), False),
    (random_model, names.TestGPT2.configs["tied"], False),
]


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize(("make", "model", "whole"), CASES)
def test_counted_tokens(
    make: Callable[[Any], PreTrainedModel], model: Any, whole: bool, covariance: bool
) -> None:
    placed = Resident(make(model))
    placed.adapter = adapt(placed.model, whole)
    found, expected = (
        observed(placed, windows, covariance) for windows in (ends_marked(), tokens()[:, :KEPT])
    )
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


def test_marks_are_of_no_matter_where_all_tokens_count() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    found, expected = (
        Calibration(placed, windows, 4, []).observe() for windows in (ends_marked(), tokens())
    )
    for a, b in zip(found, expected, strict=True):
        assert a.blocks.attention[0].num_tokens == tokens().numel()
        assert torch.equal(a.blocks.attention[0].mean_I, b.blocks.attention[0].mean_I)


@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_it_is_so_at_every_placement_and_in_sequence(
    placement: str, model_dir: Path, tmp_path: Path
) -> None:
    placed = placed_at(placement, model_dir, tmp_path)
    expected = observed(placed, tokens()[:, :KEPT], covariance=True)
    for i, found in enumerate(observed(placed, ends_marked(), covariance=True)):
        assert_same(found, expected[i])
    sequence = Calibration(placed, ends_marked(), 4, [], counted="answers").in_sequence(
        covariance=True
    )
    assert_same(next(found for _, found in sequence if found is not None), expected[0])


def test_a_batch_of_which_no_token_counts_changes_nothing() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    windows = tokens()
    none = marked(windows[:4], torch.zeros_like(windows[:4], dtype=torch.bool))
    found = observed(placed, torch.cat([windows[4:], none]), covariance=False)
    for a, b in zip(found, observed(placed, windows[4:], covariance=False), strict=True):
        assert_same(a, b)
