"""The two sides of a plan, kept and removed units, what is known of the worth of each, and which ones change sides.

Legend: U units, of a block or of all blocks one after the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from flap.allocation import Budget
from flap.models import PlacedModel
from flap.search.curve import convex_steps
from flap.search.effects import BlockEffects, add_effects
from flap.storage import ranks

DECAY = 0.9  # of what earlier steps have measured, a step


@dataclass
class Sides:
    """The kept and the removed units of all blocks, and what is known of the worth of each."""

    blocks: Sequence[BlockEffects]
    price_U: Tensor  # parameters
    block_U: Tensor  # the number of its block
    fewest: Sequence[int]
    to_keep: float  # parameters
    worth_U: Tensor  # nats, summed over tokens with decay
    square_U: Tensor  # of the error of these sums

    @classmethod
    def of(cls, budget: Budget, blocks: Sequence[BlockEffects], fewest: Sequence[int]) -> "Sides":
        """Return the sides of a plan, of which nothing is known yet."""
        counts = torch.tensor([len(one.kept_U) for one in blocks])
        prices = torch.tensor([float(units.price) for units in chain.from_iterable(budget.layers)])
        zeros_U = torch.zeros(int(counts.sum()))
        numbers_U = torch.arange(len(blocks)).repeat_interleave(counts)
        to_keep = budget.total - budget.to_remove
        return cls(blocks, prices[numbers_U], numbers_U, fewest, to_keep, zeros_U, zeros_U.clone())

    def _joined(self, of_blocks: Iterable[Tensor]) -> Tensor:
        return torch.cat([one_U.cpu() for one_U in of_blocks])

    @property
    def kept_U(self) -> Tensor:
        """The mask of the kept units."""
        return self._joined(one.kept_U for one in self.blocks)

    def add(self, model: PlacedModel, batches: Sequence[Tensor]) -> None:
        """Add what some windows say of the worth of all units; earlier ones count less from now on."""
        for tokens_NT in ranks.mine(batches):
            add_effects(model, self.blocks, tokens_NT)
        new = {name: self._joined(one.sums[name] for one in self.blocks) for name in self.blocks[0].sums}
        for sum_U in new.values():
            ranks.add_up(sum_U)
        second_U = torch.where(self.kept_U, 0.5, -0.5) * new["curvature"]
        self.worth_U = DECAY * self.worth_U - new["effect"] + second_U
        self.square_U = DECAY**2 * self.square_U + new["square"]

    def change(self, share: float) -> None:
        """Let units change sides, at most this share of what is removed, in parameters, and fit all blocks again."""
        counts, kept_U = [len(one.kept_U) for one in self.blocks], self.kept_U
        columns = zip(self.blocks, self.worth_U.split(counts), self.square_U.split(counts), strict=True)
        worths = [expected(worth_U, square_U, one.error_U.cpu()) for one, worth_U, square_U in columns]
        worth_U = torch.cat(worths) / self.price_U
        room = share * float(self.price_U[~kept_U].sum())
        for u in list(self._changes(kept_U, worth_U, room)):
            kept_U[u] = ~kept_U[u]
        for one, now_U in zip(self.blocks, kept_U.split(counts), strict=True):
            one.fit(now_U)

    def _changes(self, kept_U: Tensor, worth_U: Tensor, room: float) -> Iterator[int]:
        """Yield the units that change sides: the least kept one leaves, and as many join as there is then room for."""
        order, widths = worth_U.argsort().tolist(), [int(one.kept_U.sum()) for one in self.blocks]
        leaving, joining = (u for u in order if kept_U[u]), (u for u in reversed(order) if not kept_U[u])
        price, block, worth = self.price_U.tolist(), self.block_U.tolist(), worth_U.tolist()
        free, joins = self.to_keep - float(self.price_U[kept_U].sum()), next(joining, None)
        for leaves in leaving:
            if joins is None or room <= 0 or worth[leaves] >= worth[joins]:
                return
            if widths[block[leaves]] <= self.fewest[block[leaves]]:
                continue
            yield leaves
            widths[block[leaves]] -= 1
            free, room = free + price[leaves], room - price[leaves]
            while joins is not None and free > 0 and worth[joins] > worth[leaves]:
                yield joins
                widths[block[joins]] += 1
                free -= price[joins]
                joins = next(joining, None)


def expected(worth_U: Tensor, square_U: Tensor, error_U: Tensor) -> Tensor:
    """Return what the units of a block are likely worth, if that rises with the error they leave: empirical Bayes.

        w = trend + s / (s + square) · (worth − trend),  s = max(0, mean (worth − trend)² − mean square)

    trend: the isotonic regression of the measured worth on error_U. square_U: the squared errors of measurement. What
    differs from the trend by no more than these is noise. Source: Efron and Morris, JASA 70 (1975).
    """
    order, trend_U = error_U.argsort(), torch.empty_like(worth_U)
    values = [0.0, *worth_U[order].double().cumsum(0).tolist()]
    trend_U[order] = convex_steps(values).float()
    rest_U = worth_U - trend_U
    signal = (rest_U.square().mean() - square_U.mean()).clamp_min(0)
    return trend_U + rest_U * signal / (signal + square_U).clamp_min(torch.finfo(square_U.dtype).tiny)
