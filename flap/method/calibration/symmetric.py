"""A symmetric matrix in half of its memory: only the part from the diagonal on, in strips of rows.

Legend: I rows and columns · S rows of a strip · J columns of a strip · R selected rows · T rows of
a factor · O rows of a map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 256  # rows of a strip


@dataclass(frozen=True)
class Symmetric:
    """A symmetric matrix in float32.

    The strips have I · (I + STRIP) / 2 elements, which is 58 % of the whole matrix at 1536
    channels. Adding products takes as much less work.
    """

    strips: tuple[
        Tensor, ...
    ]  # each strip_SJ has STRIP rows, from the diagonal of its first row on

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
        """Add XᵀX."""
        for rows, strip_SJ in self._by_rows():
            strip_SJ.addmm_(matrix_TI[:, rows].T, matrix_TI[:, rows.start :])

    def add_outer(self, left_I: Tensor, right_I: Tensor, alpha: float) -> None:
        """Add alpha · left rightᵀ. One vector must be a multiple of the other."""
        for rows, strip_SJ in self._by_rows():
            strip_SJ.addr_(left_I[rows], right_I[rows.start :], alpha=alpha)

    def rows(self, rows_R: Tensor) -> Tensor:
        """Return the selected rows in full, as matrix_RI."""
        matrix_RI = self.strips[0].new_empty(len(rows_R), self.size)
        for rows, strip_SJ in self._by_rows():
            within = ((rows_R >= rows.start) & (rows_R < rows.stop)).nonzero().flatten()
            behind = (rows_R >= rows.stop).nonzero().flatten()
            if len(within):
                stored = strip_SJ.index_select(0, rows_R[within] - rows.start)
                matrix_RI[:, rows.start :].index_copy_(0, within, stored)
            if len(behind):  # the columns of these rows in this strip, by symmetry
                mirrored = strip_SJ.index_select(1, rows_R[behind] - rows.start).T
                matrix_RI[:, rows].index_copy_(0, behind, mirrored)
        return matrix_RI

    def form(self, map_OI: Tensor) -> Tensor:
        """Return the trace of M · A · Mᵀ, where A is this matrix and M the map."""
        total = map_OI.new_zeros(())
        for rows, strip_SJ in self._by_rows():
            product_OJ = (map_OI[:, rows] @ strip_SJ).mul_(map_OI[:, rows.start :])
            # Elements beside the square block on the diagonal stand for their mirror images, too.
            total += 2 * product_OJ.sum() - product_OJ[:, : len(strip_SJ)].sum()
        return total

    def diagonal(self) -> Tensor:
        """Return the diagonal as one vector."""
        return torch.cat([strip_SJ.diagonal() for strip_SJ in self.strips])

    def to(self, device: torch.device) -> "Symmetric":
        """Return the matrix on another device."""
        return Symmetric(tuple(strip_SJ.to(device) for strip_SJ in self.strips))

    def _by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each strip as a slice, and the strip."""
        for k, strip_SJ in enumerate(self.strips):
            yield slice(k * STRIP, k * STRIP + len(strip_SJ)), strip_SJ


def strips_of(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return the uninitialised strips of a matrix of this size.

    They share one block of memory, so that freeing them does not fragment the memory.
    """
    shapes = [(min(STRIP, size - start), size - start) for start in range(0, max(size, 1), STRIP)]
    sizes = [rows * columns for rows, columns in shapes]
    parts = torch.empty(sum(sizes), dtype=dtype, device=device).split(sizes)
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
