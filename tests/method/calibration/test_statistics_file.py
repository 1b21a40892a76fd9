"""Calibration statistics that are read from a file are, bit for bit, those that were written."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from flap.data import Batch
from flap.method.calibration import STATISTICS, Calibration
from flap.models import Resident
from tests.cases import tiny_model, tokens


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen3_moe"])
def test_statistics_are_equal_to_the_bit_after_reading(
    architecture: str, gradients: bool, tmp_path: Path
) -> None:
    calibration = Calibration(Resident(tiny_model(architecture)), Batch.of(tokens()), 2, [])
    statistics = calibration.observe(gradients=gradients)
    STATISTICS.write(statistics, tmp_path / "data")
    back = STATISTICS.read(tmp_path / "data")
    assert len(back) == len(statistics) >= 3
    for one, other in zip(statistics, back, strict=True):
        assert one.inverse_power == other.inverse_power > 0
        assert one.routed_power == other.routed_power
        for expected, found in zip(chain(*one.blocks), chain(*other.blocks), strict=True):
            assert found.num_tokens == expected.num_tokens
            assert found.mean_I.dtype == torch.float64
            assert torch.equal(found.mean_I, expected.mean_I)
            assert torch.equal(found.deviation_I, expected.deviation_I)
            assert found.comoments is expected.comoments is None
            assert found.parts is expected.parts is None
            if not gradients:
                assert found.effect_U is expected.effect_U is None
                continue
            assert found.effect_U is not None and expected.effect_U is not None
            assert torch.equal(found.effect_U, expected.effect_U)
