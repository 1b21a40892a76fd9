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
from flap.method.calibration import Calibration, LayerStatistics, Statistics
from flap.models import PlacedModel, Resident, adapt
from tests.cases import random_model, tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.models.families import test_mixtures as mixtures
from tests.models.families import test_other_names as names

KEPT = 13  # tokens of each window that are not marked


def ends_marked() -> Tensor:
    """Return windows in which all tokens after the first KEPT are marked."""
    tokens_NT = tokens()
    counted_NT = torch.zeros_like(tokens_NT, dtype=torch.bool)
    counted_NT[:, :KEPT] = True
    return marked(tokens_NT, counted_NT)


def observed(placed: PlacedModel, windows_NT: Tensor, covariance: bool) -> list[LayerStatistics]:
    """Collect statistics in batches of 4 windows, of which the last one is smaller."""
    calibration = Calibration(placed, windows_NT, 4, [], counted="answers")
    if not covariance:
        return calibration.observe()
    visits = calibration.visit("score", covariance=True)
    return [layer for _, layer in visits if layer is not None]


def assert_same_comoments(found: Statistics, expected: Statistics) -> None:
    if expected.comoments is None:
        assert found.comoments is None
        return
    assert found.comoments is not None
    variance_I = found.comoments.diagonal()
    expected_I = expected.comoments.diagonal()
    torch.testing.assert_close(variance_I, expected_I, rtol=1e-3, atol=1e-5)


def assert_same_block(found: Statistics, expected: Statistics) -> None:
    assert found.num_tokens == expected.num_tokens
    torch.testing.assert_close(found.mean_I, expected.mean_I, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.deviation_I, expected.deviation_I, rtol=1e-4, atol=1e-6)
    parts = found.parts or (found,)
    expected_parts = expected.parts or (expected,)
    for part, expected_part in zip(parts, expected_parts, strict=True):
        assert_same_comoments(part, expected_part)


def assert_same(found: LayerStatistics, expected: LayerStatistics) -> None:
    assert found.inverse_power == pytest.approx(expected.inverse_power, rel=1e-5)
    assert found.routed_power == pytest.approx(expected.routed_power, rel=1e-5)
    blocks = (*found.blocks, found.routed)
    expected_blocks = (*expected.blocks, expected.routed)
    for members, expected_members in zip(blocks, expected_blocks, strict=True):
        for member, expected_member in zip(members, expected_members, strict=True):
            assert_same_block(member, expected_member)


LLAMA4 = mixtures.TestLlama4.configs["mha"]
DEEPSEEK_V3 = mixtures.TestDeepseekV3.configs["queries"]
CASES = [
    (tiny_model, "llama-gqa", False),
    (tiny_model, "qwen3_5", False),
    (tiny_model, "gemma4", False),
    (tiny_model, "mixtral", False),
    (tiny_model, "mixtral", True),
    (tiny_model, "qwen3_moe", True),
    (random_model, LLAMA4, False),
    (random_model, LLAMA4, True),
    (random_model, DEEPSEEK_V3, False),
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
    for layer, expected_layer in zip(found, expected, strict=True):
        [attention] = layer.blocks.attention
        [expected_attention] = expected_layer.blocks.attention
        assert attention.num_tokens == tokens().numel()
        assert torch.equal(attention.mean_I, expected_attention.mean_I)


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
    first_NT, last_NT = tokens().split(4)
    marked_NT = marked(first_NT, torch.zeros_like(first_NT, dtype=torch.bool))
    found = observed(placed, torch.cat([last_NT, marked_NT]), covariance=False)
    expected = observed(placed, last_NT, covariance=False)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
