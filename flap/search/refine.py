"""Refinement of a plan: measurements with a few units more or fewer in one block correct the nats of its units.

Legend: U units of a block · E experts · R ranks of an expert's neurons.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import ranked
from flap.models import Pair
from flap.search.curve import scattered
from flap.search.trials import Trial, nats_by_block, unit_scores, without_lowest

# The largest factor by which one measurement changes nats: small differences on few windows are noise.
LIMIT = 4.0


def neighbours(scores: Pair[Tensor], plan: LayerPlan, step: float, experts: int = 1, fewest: int = 1) -> list[Trial]:
    """Return the trials around a layer's plan: in each block a share `step` of the units is restored, or removed.

    fewest: units that the MLP keeps at least.
    """
    trials = []
    by_block = zip(Pair._fields, unit_scores(scores), plan, (1, experts), (1, fewest), strict=True)
    for block, score_U, kept, parts, least in by_block:
        count = len(score_U) // parts
        now, units = count - len(kept) // parts, math.ceil(step * count)
        for removed in sorted({max(now - units, 0), max(min(now + units, count - least), now)} - {now}):
            neighbour = plan._replace(**{block: without_lowest(score_U, removed, parts)})
            trials.append(Trial(block, removed, neighbour))
    return trials


def corrected(
    nats: Sequence[Pair[Tensor]],
    plan: PruningPlan,
    divergence: float,
    around: Sequence[Sequence[tuple[Trial, float]]],
    budget: Budget,
    strength: float,
) -> list[Pair[Tensor]]:
    """Return the nats over price of all units, corrected by measurements around a plan.

    divergence: of the plan. around: for each layer its neighbours with their divergences, in nats a token.
    A correction is the measured change of the divergence over the expected one. In each block, the removed units are
    multiplied by the correction for restoring units, the kept units by the one for removing more, both to the power
    of `strength`. The order of the units of a block stays the same.
    """
    layers = []
    for i, (layer, all_units, prices) in enumerate(zip(plan.layers, budget.layers, budget.prices, strict=True)):
        rises = nats_by_block((trial, measured - divergence) for trial, measured in around[i])
        blocks = []
        for nats_U, kept, units, price, rise in zip(nats[i], layer, all_units, prices, rises, strict=True):
            over_price = {removed: change / price for removed, change in rise.items()}
            order_ER = ranked(nats_U, units.members)
            nats_R = rescaled(nats_U[order_ER[0]], units.count - len(kept) // units.members, over_price, strength)
            blocks.append(scattered(nats_R, order_ER))
        layers.append(Pair(*blocks))
    return layers


def rescaled(nats_U: Tensor, num_removed: int, rises: dict[int, float], strength: float) -> Tensor:
    """Return the corrected nats_U of a block of which the plan removes `num_removed` units; see `corrected`.

    rises: another number of removed units -> measured divergence minus the plan's, over the price, as nats_U.
    """
    order = nats_U.argsort(stable=True)
    nats = nats_U[order].clone()
    factors = {}  # True: for removing more units; False: for restoring some
    for removed, rise in rises.items():
        more = removed > num_removed
        expected = float(nats[min(removed, num_removed) : max(removed, num_removed)].sum())
        observed = abs(rise) if (rise > 0) == more else 0.0
        factors[more] = min(max(observed / expected, 1 / LIMIT), LIMIT) if expected > 0 else 1.0
    restoring = factors.get(False, factors.get(True, 1.0))
    nats[:num_removed] *= restoring**strength
    nats[num_removed:] *= factors.get(True, restoring) ** strength
    rescaled_U = torch.empty_like(nats)
    rescaled_U[order] = nats.cummax(0).values * (1 + 1e-9 * torch.arange(len(nats)).double())  # keeps the order
    return rescaled_U
