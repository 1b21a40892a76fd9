"""`Symmetric` stores half of a symmetric matrix.

It computes rows, the diagonal and quadratic forms of the whole matrix.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flap.method.calibration.symmetric import STRIP, Symmetric
from tests.helpers.compressed import noise, symmetric

CPU = torch.device("cpu")
SIZES = [
    1,
    STRIP - 1,
    STRIP,
    STRIP + 1,
    3 * STRIP - 7,
]


def number_of_values(strips: Sequence[Tensor]) -> int:
    return sum(strip.numel() for strip in strips)


@pytest.mark.parametrize("size", SIZES)
def test_rows_in_any_order_are_those_of_the_whole(size: int) -> None:
    factor_TI = noise(9, size, seed=0)
    vector_I = noise(1, size, seed=1)[0]
    matrix = Symmetric.zeros(size, CPU)
    matrix.add_products(factor_TI[:4])
    matrix.add_products(factor_TI[4:])
    matrix.add_outer(2 * vector_I, vector_I, alpha=-1)
    products_II = factor_TI.T @ factor_TI
    expected_II = products_II - 2 * torch.outer(vector_I, vector_I)

    in_order_I = torch.arange(size)
    shuffled_I = torch.randperm(size, generator=torch.Generator().manual_seed(2))
    few_R = shuffled_I[: size // 3]
    for rows_R in (in_order_I, shuffled_I, few_R):
        found_RI = matrix.rows(rows_R)
        torch.testing.assert_close(found_RI, expected_II[rows_R], rtol=1e-4, atol=1e-4)

    map_OI = noise(5, size, seed=3)
    form_OO = map_OI @ expected_II @ map_OI.T
    torch.testing.assert_close(matrix.form(map_OI), form_OO.trace(), rtol=1e-4, atol=1e-2)
    diagonal_I = expected_II.diagonal()
    torch.testing.assert_close(matrix.diagonal(), diagonal_I, rtol=1e-4, atol=1e-4)


def test_it_takes_half_of_the_memory() -> None:
    size = 4 * STRIP
    values = size * (size + STRIP) // 2
    random_II = noise(size, size)
    matrix_II = random_II + random_II.T
    matrix = symmetric(matrix_II)
    assert matrix.size == size
    assert number_of_values(matrix.strips) == values
    assert torch.equal(matrix.rows(torch.arange(size)), matrix_II)
    assert number_of_values(Symmetric.zeros(size, CPU).strips) == values


def test_all_strips_are_in_one_block_of_memory() -> None:
    """All strips (groups of rows) of a matrix are parts of one large block of memory.

    When a large block is freed, the allocator returns it to the system.
    """
    matrix = Symmetric.zeros(4 * STRIP, CPU)
    addresses = {strip.untyped_storage().data_ptr() for strip in matrix.strips}
    assert len(addresses) == 1
