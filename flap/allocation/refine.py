"""Moves around a plan: what a block's last and next units do to the whole pruned model corrects their nats.

Legend: U units of a block.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.search import Search, Trial, by_block, of_units, without
from flap.importance import Scores

# One measurement changes nats by no more than this factor: small differences on few windows are noise.
LIMIT = 4.0


def neighbours(structure: Search, scores: Scores, plan: PruningPlan, layer: int) -> list[Trial]:
    """The layer with a share `structure.step` of a block's units given back, and with as many more taken."""
    score_G, score_I = of_units(scores, layer)
    now = plan.layers[layer]
    trials = []
    for block, score_U, kept in (("attention", score_G, now.kv_heads), ("mlp", score_I, now.neurons)):
        left, step = len(score_U) - len(kept), math.ceil(structure.step * len(score_U))
        for removed in sorted({max(left - step, 0), min(left + step, len(score_U) - 1)} - {left}):
            trials.append(Trial(block, removed, _with(now, block, without(score_U, removed))))
    return trials


def _with(layer: LayerPlan, block: str, kept: tuple[int, ...]) -> LayerPlan:
    return LayerPlan(kept, layer.neurons) if block == "attention" else LayerPlan(layer.kv_heads, kept)


def corrected(
    nats: Scores,
    plan: PruningPlan,
    divergence: float,
    trials: Sequence[Sequence[Trial]],
    measured: Sequence[Sequence[float]],
    budget: Budget,
    strength: float,
) -> Scores:
    """Nats per parameter of all units, scaled by what moves were measured to do over what they were expected to.

    divergence: the plan's. trials and measured: of each layer, its neighbours and their divergences. A block's units
    that have left are scaled by what giving some back saves, those that stay by what taking more costs, both to the
    power of `strength`; a later unit stays no cheaper than an earlier one.
    """
    heads, neurons = [], []
    for i, (layer, prices) in enumerate(zip(plan.layers, budget.layers, strict=True)):
        nats_G, nats_I = of_units(nats, i)
        known = by_block(trials[i], [one - divergence for one in measured[i]])
        left_G, left_I = len(nats_G) - len(layer.kv_heads), len(nats_I) - len(layer.neurons)
        rise_G = {n: one / prices.kv_head_price for n, one in known["attention"].items()}
        rise_I = {n: one / prices.neuron_price for n, one in known["mlp"].items()}
        heads.append(rescaled(nats_G, left_G, rise_G, strength)[:, None])
        neurons.append(rescaled(nats_I, left_I, rise_I, strength))
    return Scores(tuple(heads), tuple(neurons))


def rescaled(nats_U: Tensor, left: int, rises: dict[int, float], strength: float) -> Tensor:
    """nats_U of a block of which `left` units have left, scaled as `corrected` says.

    rises: how many units had left instead -> how much higher the divergence was then, in nats per parameter as nats_U;
    below zero where it was lower.
    """
    order = nats_U.argsort(stable=True)
    nats = nats_U[order].clone()
    factors = {}
    for removed, rise in rises.items():
        expected = float(nats[min(removed, left) : max(removed, left)].sum())
        found = abs(rise) if (rise > 0) == (removed > left) else 0.0
        factors[removed > left] = min(max(found / expected, 1 / LIMIT), LIMIT) if expected > 0 else 1.0
    fewer = factors.get(False, factors.get(True, 1.0))
    nats[:left] *= fewer**strength
    nats[left:] *= factors.get(True, fewer) ** strength
    rescaled_U = torch.empty_like(nats)
    rescaled_U[order] = nats.cummax(0).values * (1 + 1e-9 * torch.arange(len(nats)).double())  # in the order of before
    return rescaled_U
