"""Half of a symmetric matrix is stored, and rows, forms and the diagonal are those of the whole."""

import pytest
import torch

from flap.method.calibration.symmetric import STRIP, Symmetric
from tests.helpers.compressed import symmetric

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, STRIP - 1, STRIP, STRIP + 1, 3 * STRIP - 7])
def test_rows_in_any_order_are_those_of_the_whole(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    factor_TI = torch.randn(9, size, generator=generator)
    vector_I = torch.randn(size, generator=generator)
    found = Symmetric.zeros(size, CPU)
    found.add_products(factor_TI[:4])
    found.add_products(factor_TI[4:])
    found.add_outer(2 * vector_I, vector_I, alpha=-1)
    expected_II = factor_TI.T @ factor_TI - 2 * torch.outer(vector_I, vector_I)
    order_I = torch.randperm(size, generator=generator)
    for rows_R in (torch.arange(size), order_I, order_I[: size // 3]):
        torch.testing.assert_close(found.rows(rows_R), expected_II[rows_R], rtol=1e-4, atol=1e-4)
    map_OI = torch.randn(5, size, generator=generator)
    expected = (map_OI @ expected_II @ map_OI.T).trace()
    torch.testing.assert_close(found.form(map_OI), expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.diagonal(), expected_II.diagonal(), rtol=1e-4, atol=1e-4)


def test_it_takes_half_of_the_memory() -> None:
    size = 4 * STRIP
    matrix_II = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    found = symmetric(matrix_II + matrix_II.T)
    assert found.size == size
    assert sum(strip.numel() for strip in found.strips) == size * (size + STRIP) / 2
    assert torch.equal(found.rows(torch.arange(size)), matrix_II + matrix_II.T)
    strips = Symmetric.zeros(size, CPU).strips
    assert sum(strip.numel() for strip in strips) == size * (size + STRIP) / 2
    # All strips are in one block of memory, because large blocks go back to the system.
    assert len({strip.untyped_storage().data_ptr() for strip in strips}) == 1
