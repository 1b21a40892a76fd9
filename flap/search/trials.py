"""The trials of a search: a layer with the lowest-scored units of one of its blocks removed.

Legend: G attention units · U units of a block · I neurons.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from flap.allocation.plan import LayerPlan
from flap.allocation.ranking import highest
from flap.models import Pair


@dataclass(frozen=True)
class Trial:
    """The plan of a layer with `removed` units of its attention or MLP removed; the other block is unchanged.

    block: the block that changes, a field name of `Pair`. removed: of experts, the number of neurons of each one.
    """

    block: str
    removed: int
    plan: LayerPlan


def unit_scores(layer: Pair[Tensor]) -> Pair[Tensor]:
    """Return score_G and score_I of a layer: for each unit the sum over its channels."""
    return Pair(layer.attention.sum(dim=1), layer.mlp)


def without_lowest(score_U: Tensor, removed: int, experts: int = 1) -> tuple[int, ...]:
    """Return the units that stay when the `removed` lowest-scored ones of each expert are removed, ascending."""
    return highest(score_U, len(score_U) // experts - removed, experts)


def removal_counts(levels: Sequence[float], units: int, fewest: int = 1) -> list[int]:
    """Return how many units the shares `levels` of a block are, ascending; at least one is removed and one stays.

    fewest: that stay; if it is 0, also the whole block is tried.

    A block of few units is tried, too: where no share comes to a unit of it, with the nearest number that does.
    """
    counts = {math.floor(level * units + 0.5) for level in levels}
    fitting = {n for n in counts if 0 < n < units} or {min(max(n, 1), units - 1) for n in counts}
    whole = {units} - {0} if fewest == 0 else set()
    return sorted(fitting | whole if units > 1 else whole)


def nats_by_block(measured: Iterable[tuple[Trial, float]]) -> Pair[dict[int, float]]:
    """Return for each block: number of removed units -> nats of that trial, in nats a token."""
    pair: Pair[dict[int, float]] = Pair({}, {})
    for trial, trial_nats in measured:
        getattr(pair, trial.block)[trial.removed] = trial_nats
    return pair
