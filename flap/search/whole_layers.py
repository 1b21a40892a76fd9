"""Whole layers in a search: which of them leave, beside heads and neurons or alone."""

import math
from collections.abc import Sequence

from torch import Tensor

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure
from flap.allocation.adaptive import one_ranking
from flap.allocation.bounds import within_all
from flap.allocation.structure import removed
from flap.config import require
from flap.importance import Scores
from flap.models import Pair

ONLY = "only"  # whole layers leave, and no heads or neurons of others


def with_whole_layers(
    structure: Structure, nats: Sequence[Pair[Tensor]], scores: Scores, budget: Budget
) -> PruningPlan:
    """Return the plan with the fewest nats in all among those without 0, 1, 2, … whole layers.

    Layers leave in the order of their nats over price, measured with the map in the MLP before them; before the first
    layer there is none, so it stays. Heads and neurons of the other layers leave for the rest of the budget, in one
    ranking. So a layer leaves whole where its parts, and what would leave in its place, cost more. nats: over price, of
    all units. scores: with each layer's own divergence at the end.
    """
    whole = [0.0, *(measured[-1] for measured in scores.divergences[1:])]
    columns = zip(budget.layers, budget.prices, strict=True)
    price = [sum(units.count * one for units, one in zip(*pair, strict=True)) for pair in columns]
    # a layer without units has no price: nothing is won by it, so it leaves last
    order = sorted(range(1, len(whole)), key=lambda i: whole[i] / price[i] if price[i] else math.inf)
    sets = [tuple(sorted(order[:n])) for n in range(len(whole))]
    fitting = [gone for gone in sets if structure.layers != ONLY and _room(structure, budget, gone)]
    if not fitting:
        return _nearest([_plan(budget, gone) for gone in sets], budget)
    plans = [_beside(structure, nats, gone, budget) for gone in fitting]
    return min(plans, key=lambda plan: sum(whole[i] for i in plan.dropped) + _nats(nats, plan, budget))


def _nearest(plans: Sequence[PruningPlan], budget: Budget) -> PruningPlan:
    """Return the plan nearest to the ratio; with bounds the first one within them.

    Raises:
        ValueError: none is within the bounds.
    """
    if not budget.bounds:
        return min(plans, key=lambda plan: abs(budget.total - budget.to_remove - budget.kept(plan)))
    within = [plan for plan in plans if within_all(budget.bounds, budget.widths(plan))]
    names = " and ".join(f"target.{bound.target}" for bound in budget.bounds)
    require(bool(within), "structure.layers", ONLY, f"true for {names}, which no number of whole layers reaches")
    return within[0]


def _room(structure: Structure, budget: Budget, gone: Sequence[int]) -> bool:
    """Return whether what is asked for is between these layers alone and them with all that may leave of the others."""
    rest = budget.without(gone)
    least = list(map(structure.fewest_units, rest.layers))
    if budget.bounds:  # which may be met with room
        return within_all(rest.bounds, least)
    alone, rounding = budget.total - rest.total, 1e-9 * budget.total
    return alone - rounding <= budget.to_remove <= alone + removed(rest.layers, least) + rounding


def _plan(budget: Budget, gone: Sequence[int], others: PruningPlan | None = None) -> PruningPlan:
    """Return the plan without these layers. others: of the other layers; None: they keep all."""
    left = budget.without(gone)
    whole = (LayerPlan(*(tuple(range(units.count)) for units in layer)) for layer in left.layers)
    kept = iter(others.layers if others else whole)
    return PruningPlan(
        tuple(LayerPlan((), ()) if i in gone else next(kept) for i in range(len(budget.layers))), dropped=tuple(gone)
    )


def _beside(structure: Structure, nats: Sequence[Pair[Tensor]], gone: Sequence[int], budget: Budget) -> PruningPlan:
    """Return the plan without these layers, and without heads and neurons of the others for the rest of the budget."""
    rest = [layer for i, layer in enumerate(nats) if i not in gone]
    return _plan(budget, gone, one_ranking(structure, rest, budget.without(gone)))


def _nats(nats: Sequence[Pair[Tensor]], plan: PruningPlan, budget: Budget) -> float:
    """Return the nats of the units that leave from layers that stay."""
    total = 0.0
    for i, (layer, kept, prices) in enumerate(zip(nats, plan.layers, budget.prices, strict=True)):
        if i not in plan.dropped:
            total += sum(
                float(nats_U.sum() - nats_U[list(units)].sum()) * price
                for nats_U, units, price in zip(layer, kept, prices, strict=True)
            )
    return total
