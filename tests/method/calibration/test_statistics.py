"""Merged statistics of batches of any sizes agree with the two-pass formula in float64.

The two-pass formula first computes the mean of each channel, and then the variance from the
deviations.
"""

from collections.abc import Sequence
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flap.method.calibration.statistics import Statistics, batch_statistics, merge

TOLERANCE = 1e-5


def from_batches(batches: Sequence[Tensor]) -> Statistics:
    return reduce(merge, [batch_statistics(batch) for batch in batches])


def assert_two_pass(found: Statistics, activation_TI: Tensor) -> None:
    wide_TI = activation_TI.double()
    mean_I = wide_TI.mean(0)
    variance_I = wide_TI.var(0, correction=1)
    mean_square_I = wide_TI.square().mean(0)

    assert found.num_tokens == len(activation_TI)
    assert found.var_I.dtype == torch.float32
    assert found.msq_I.dtype == torch.float32
    error_I = (found.mean_I - mean_I).abs()
    assert (error_I <= TOLERANCE * mean_square_I.sqrt()).all()
    torch.testing.assert_close(found.var_I.double(), variance_I, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found.msq_I.double(), mean_square_I, rtol=TOLERANCE, atol=0)


def random_activations(num_tokens: int, offset: float = 0.0, seed: int = 0) -> Tensor:
    """Return activations of five channels: noise plus an offset, at scales from 0.01 to 100."""
    noise = torch.randn(num_tokens, 5, generator=torch.Generator().manual_seed(seed))
    return (noise + offset) * torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0])


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    sizes=SIZES.filter(lambda sizes: sum(sizes) > 1),
    offset=st.sampled_from([0.0, -1.0, 10.0]),
    seed=st.integers(0, 2**32),
)
def test_any_split_into_batches(sizes: list[int], offset: float, seed: int) -> None:
    activation_TI = random_activations(sum(sizes), offset, seed)
    assert_two_pass(from_batches(activation_TI.split(sizes)), activation_TI)


@pytest.mark.parametrize("batch_size", [7, 64, 512])
@pytest.mark.parametrize("offset", [100.0, -1000.0])
def test_mean_much_larger_than_the_spread(offset: float, batch_size: int) -> None:
    activation_TI = random_activations(512, offset)
    assert_two_pass(from_batches(activation_TI.split(batch_size)), activation_TI)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_reduced_in_float32(dtype: torch.dtype) -> None:
    activation_TI = random_activations(300, offset=2.0).to(dtype)
    assert_two_pass(from_batches(activation_TI.split(70)), activation_TI)
