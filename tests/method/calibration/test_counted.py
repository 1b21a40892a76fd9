"""Statistics are computed over the counted tokens, for which the mask of a batch is true.

In these tests, the uncounted tokens are mostly at the end of each window. Later tokens do not
change the hidden states of earlier tokens, so the statistics are the same as for windows without
these last tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.calibration import Calibration, LayerStatistics, Statistics
from flap.models import PlacedModel, Resident, adapt
from tests.cases import random_model, tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.models.families import test_mixtures as mixtures
from tests.models.families import test_other_names as names

KEPT = 13  # in each window, only the first KEPT tokens count


def masked() -> Batch:
    """Return windows in which only the first KEPT tokens count."""
    tokens_NT = tokens()
    mask_NT = torch.zeros_like(tokens_NT, dtype=torch.bool)
    mask_NT[:, :KEPT] = True
    return Batch(tokens_NT, mask_NT)


def shortened() -> Batch:
    """Return windows that end after the first KEPT tokens."""
    return Batch.of(tokens()[:, :KEPT])


def observed(placed: PlacedModel, windows: Batch, covariance: bool) -> list[LayerStatistics]:
    """Collect statistics in batches of at most 4 windows."""
    calibration = Calibration(placed, windows, 4, [])
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
def test_tokens_that_do_not_count_are_left_out(
    make: Callable[[Any], PreTrainedModel], model: Any, whole: bool, covariance: bool
) -> None:
    placed = Resident(make(model))
    placed.adapter = adapt(placed.model, whole)
    found = observed(placed, masked(), covariance)
    expected = observed(placed, shortened(), covariance)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


def test_the_tokens_that_judge_do_not_change_statistics() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    windows = Batch.of(tokens())
    found = Calibration(placed, windows, 4, [], judged_NT=masked().mask_NT).observe()
    expected = Calibration(placed, windows, 4, []).observe()
    for layer, expected_layer in zip(found, expected, strict=True):
        [attention] = layer.blocks.attention
        [expected_attention] = expected_layer.blocks.attention
        assert attention.num_tokens == tokens().numel()
        assert torch.equal(attention.mean_I, expected_attention.mean_I)


@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_tokens_that_do_not_count_are_left_out_at_every_placement_and_in_sequence(
    placement: str, model_dir: Path, tmp_path: Path
) -> None:
    placed = placed_at(placement, model_dir, tmp_path)
    expected = observed(placed, shortened(), covariance=True)
    for i, found in enumerate(observed(placed, masked(), covariance=True)):
        assert_same(found, expected[i])
    calibration = Calibration(placed, masked(), 4, [])
    _, first = next(calibration.in_sequence(covariance=True))
    assert first is not None
    assert_same(first, expected[0])


def test_a_batch_in_which_no_token_counts_changes_nothing() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    windows = Batch.of(tokens())
    # No token counts in two of the four windows of the first batch, nor in the whole second batch.
    windows.mask_NT[2:] = False
    found = observed(placed, windows, covariance=False)
    expected = observed(placed, windows[:2], covariance=False)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
