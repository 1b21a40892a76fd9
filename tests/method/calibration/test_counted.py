"""Marked tokens at the end of windows are left out, as if the windows ended before them.

Later tokens do not change the states of earlier ones, so both have the same statistics.
"""

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

KEPT = 13  # tokens of each window that are not marked


def ends_marked() -> Tensor:
    """Return windows in which all tokens after the first KEPT are marked."""
    tokens_NT = tokens()
    return marked(tokens_NT, (torch.arange(tokens_NT.shape[1]) < KEPT).expand_as(tokens_NT))


def observed(placed: PlacedModel, windows_NT: Tensor, covariance: bool) -> list[LayerStatistics]:
    """Collect statistics in batches of 4 windows, of which the last one is smaller."""
    calibration = Calibration(placed, windows_NT, 4, [], counted="answers")
    if not covariance:
        return calibration.observe()
    visits = calibration.visit("score", covariance=True)
    return [layer for _, layer in visits if layer is not None]


def assert_same(found: LayerStatistics, expected: LayerStatistics) -> None:
    assert found.inverse_power == pytest.approx(expected.inverse_power, rel=1e-5)
    assert found.routed_power == pytest.approx(expected.routed_power, rel=1e-5)
    pairs = zip((*found.blocks, found.routed), (*expected.blocks, expected.routed), strict=True)
    for a, b in [pair for blocks in pairs for pair in zip(*blocks, strict=True)]:
        assert a.num_tokens == b.num_tokens
        torch.testing.assert_close(a.mean_I, b.mean_I, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.deviation_I, b.deviation_I, rtol=1e-4, atol=1e-6)
        for part, other in zip(a.parts or (a,), b.parts or (b,), strict=True):
            assert (part.comoments is None) == (other.comoments is None)
            if part.comoments is not None and other.comoments is not None:
                variance_I = part.comoments.diagonal()
                other_I = other.comoments.diagonal()
                torch.testing.assert_close(variance_I, other_I, rtol=1e-3, atol=1e-5)


CASES = [
    *((tiny_model, name, False) for name in ("llama-gqa", "qwen3_5", "gemma4", "mixtral")),
    *((tiny_model, name, True) for name in ("mixtral", "qwen3_moe")),
    *((random_model, mixtures.TestLlama4.configs["mha"], whole) for whole in (False, True)),
    (random_model, next(iter(mixtures.TestDeepseekV3.configs.values())), False),
    (random_model, names.TestGPT2.configs["tied"], False),
]


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize(("make", "model", "whole"), CASES)
def test_marked_tokens_are_left_out(
    make: Callable[[Any], PreTrainedModel], model: Any, whole: bool, covariance: bool
) -> None:
    placed = Resident(make(model))
    placed.adapter = adapt(placed.model, whole)
    found = observed(placed, ends_marked(), covariance)
    expected = observed(placed, tokens()[:, :KEPT], covariance)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


def test_marks_change_nothing_if_all_tokens_count() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    found = Calibration(placed, ends_marked(), 4, []).observe()
    expected = Calibration(placed, tokens(), 4, []).observe()
    for a, b in zip(found, expected, strict=True):
        assert a.blocks.attention[0].num_tokens == tokens().numel()
        assert torch.equal(a.blocks.attention[0].mean_I, b.blocks.attention[0].mean_I)


@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_marked_tokens_are_left_out_at_every_placement_and_in_sequence(
    placement: str, model_dir: Path, tmp_path: Path
) -> None:
    placed = placed_at(placement, model_dir, tmp_path)
    expected = observed(placed, tokens()[:, :KEPT], covariance=True)
    for i, found in enumerate(observed(placed, ends_marked(), covariance=True)):
        assert_same(found, expected[i])
    calibration = Calibration(placed, ends_marked(), 4, [], counted="answers")
    _, first = next(calibration.in_sequence(covariance=True))
    assert first is not None
    assert_same(first, expected[0])


def test_a_batch_whose_tokens_are_all_marked_changes_nothing() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    windows = tokens()
    none = marked(windows[:4], torch.zeros_like(windows[:4], dtype=torch.bool))
    found = observed(placed, torch.cat([windows[4:], none]), covariance=False)
    for a, b in zip(found, observed(placed, windows[4:], covariance=False), strict=True):
        assert_same(a, b)
