"""A symmetric matrix that does not store most of the elements below its diagonal.

The rows are divided into strips. A strip stores the columns from the diagonal element of its first
row to the last column.

Legend: I: rows, or columns, of the matrix · S: rows of a strip · J: columns of a strip · R:
selected rows · T: tokens · O: outputs of a linear map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 256  # number of rows in a strip of a symmetric matrix


@dataclass(frozen=True)
class Symmetric:
    """A symmetric matrix in float32.

    The strips have I · (I + STRIP) / 2 elements. If I is 1536, these are 58 % of the elements of
    the whole matrix. `add_products` also needs only this share of the operations that it would need
    for a whole matrix.
    """

    # each strip_SJ has STRIP rows (the last strip may have fewer), and begins at the diagonal
    # element of its first row
    strips: tuple[Tensor, ...]

    @classmethod
    def zeros(cls, size: int, device: torch.device) -> "Symmetric":
        """Return a zero matrix with this number of rows and columns."""
        strips = strips_of(size, torch.float32, device)
        for strip_SJ in strips:
            strip_SJ.zero_()
        return cls(strips)

    @property
    def size(self) -> int:
        """The number of rows and of columns."""
        return self.strips[0].shape[1]

    def add_products(self, matrix_TI: Tensor) -> None:
        """Add XᵀX to this matrix in place, where X is `matrix_TI`."""
        for rows, strip_SJ in self._strips_with_rows():
            strip_SJ.addmm_(matrix_TI[:, rows].T, matrix_TI[:, rows.start :])

    def add_outer(self, left_I: Tensor, right_I: Tensor, alpha: float) -> None:
        """Add alpha · left rightᵀ to this matrix in place.

        One vector must be a multiple of the other vector, so that the matrix stays symmetric.
        """
        for rows, strip_SJ in self._strips_with_rows():
            strip_SJ.addr_(left_I[rows], right_I[rows.start :], alpha=alpha)

    def rows(self, rows_R: Tensor) -> Tensor:
        """Return the selected rows in full, as matrix_RI."""
        matrix_RI = self.strips[0].new_empty(len(rows_R), self.size)
        for rows, strip_SJ in self._strips_with_rows():
            is_behind_R = rows_R >= rows.stop
            is_within_R = (rows_R >= rows.start) & ~is_behind_R
            within = is_within_R.nonzero().flatten()
            behind = is_behind_R.nonzero().flatten()
            in_strip_R = rows_R - rows.start
            if len(within):
                stored = strip_SJ.index_select(0, in_strip_R[within])
                matrix_RI[:, rows.start :].index_copy_(0, within, stored)
            # A selected row below this strip does not store its elements in the columns `rows`.
            # The same elements are read from this strip, because the matrix is symmetric.
            if len(behind):
                mirrored = strip_SJ.index_select(1, in_strip_R[behind])
                matrix_RI[:, rows].index_copy_(0, behind, mirrored.T)
        return matrix_RI

    def form(self, map_OI: Tensor) -> Tensor:
        """Return the trace of M · A · Mᵀ, where A is this matrix and M is `map_OI`."""
        total = map_OI.new_zeros(())
        for rows, strip_SJ in self._strips_with_rows():
            product_OJ = map_OI[:, rows] @ strip_SJ
            product_OJ *= map_OI[:, rows.start :]
            # An element to the right of the strip's square block on the diagonal counts twice,
            # because its mirror element below the diagonal is not stored.
            block_OS = product_OJ[:, : len(strip_SJ)]
            total += 2 * product_OJ.sum() - block_OS.sum()
        return total

    def diagonal(self) -> Tensor:
        """Return the diagonal as one vector."""
        return torch.cat([strip_SJ.diagonal() for strip_SJ in self.strips])

    def to(self, device: torch.device) -> "Symmetric":
        """Return the matrix on another device."""
        return Symmetric(tuple(strip_SJ.to(device) for strip_SJ in self.strips))

    def _strips_with_rows(self) -> Iterator[tuple[slice, Tensor]]:
        start = 0
        for strip_SJ in self.strips:
            stop = start + len(strip_SJ)
            yield slice(start, stop), strip_SJ
            start = stop


def strips_of(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return the uninitialised strips of a matrix of this size.

    The strips share one allocation, so that freeing them does not fragment memory.
    """
    shapes = []
    for start in range(0, max(size, 1), STRIP):
        columns = size - start
        shapes.append((min(STRIP, columns), columns))

    sizes = [rows * columns for rows, columns in shapes]
    memory = torch.empty(sum(sizes), dtype=dtype, device=device)
    strips = []
    for part, shape in zip(memory.split(sizes), shapes, strict=True):
        strips.append(part.view(shape))
    return tuple(strips)
