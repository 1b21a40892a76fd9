"""E[1 / ‖h‖²]: by hand, exact for any split into batches, finite whatever flows in, not led by a few large tokens."""

import pytest
import torch
from torch import Tensor, nn

from flap.method.calibration.recorder import ResidualRecorder, inverse_power

LAYER = nn.Identity()


def recorded(*batches: Tensor) -> ResidualRecorder:
    recorder = ResidualRecorder()
    for batch in batches:
        recorder(LAYER, (batch,))
    return recorder


def test_by_hand() -> None:
    """Squared norms 25, 4 and 100: (0.04 + 0.25 + 0.01) / 3."""
    hidden_NTD = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [6.0, 8.0]]])
    assert inverse_power([recorded(hidden_NTD)]) == pytest.approx(0.1)
    assert inverse_power([recorded(hidden_NTD[:, :1], hidden_NTD[:, 1:])]) == pytest.approx(0.1)
    assert inverse_power([recorded(hidden_NTD[:, :1]), recorded(hidden_NTD[:, 1:])]) == pytest.approx(0.1)


def test_a_token_with_massive_activations_counts_as_one_token() -> None:
    hidden_NTD = torch.ones(1, 100, 4)
    ordinary = inverse_power([recorded(hidden_NTD)])
    hidden_NTD[0, 0] = 1000.0
    assert inverse_power([recorded(hidden_NTD)]) == pytest.approx(0.99 * ordinary)


def test_hidden_states_of_zeros_are_left_out() -> None:
    hidden_NTD = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]]])
    assert inverse_power([recorded(hidden_NTD)]) == pytest.approx(0.04)
    assert inverse_power([recorded(hidden_NTD[:, 1:])]) == 0.0
    assert inverse_power([ResidualRecorder()]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    hidden_NTD = torch.tensor([[[300.0, 400.0]]], dtype=dtype)  # squares beyond float16
    assert inverse_power([recorded(hidden_NTD)]) == pytest.approx(1 / 250_000, rel=1e-5)
