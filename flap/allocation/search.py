"""search: units compete over all layers by what their loss was measured to do to the model's predictions.

Legend: G attention units · U units of a block · I neurons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from flap.allocation.adaptive import one_ranking
from flap.allocation.budget import Budget
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import highest
from flap.allocation.structure import Structure
from flap.importance import Scores

BLOCKS = ("attention", "mlp")
LEAST = 1e-200  # nats that a loss costs where none were measured: the score still decides which units leave first


@dataclass(frozen=True)
class Trial:
    """A layer whose attention or MLP has lost `removed` units; the other block is as before."""

    block: str  # one of BLOCKS
    removed: int
    plan: LayerPlan


@dataclass(frozen=True)
class Search(Structure):
    """search: one ranking of all attention units and neurons by nats per parameter, measured on the predictions.

    Each block alone loses its lowest units, a share of `levels` at a time, compensated and with the rest of the model
    dense; the divergence on `tokens` calibration tokens is measured (docs/method.md says which), and `in_nats`
    spreads it over the units. Then, `rounds` times, blocks give back and lose a share `step` of their units around the
    plan, and `corrected` (refine.py) moves budget as that says.
    """

    tokens: int = 2048
    levels: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5, 0.75])
    rounds: int = 2
    step: float = 0.0625

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"structure.tokens={self.tokens}: expected a whole number >= 1")
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"structure.levels={self.levels}: expected shares of a block's units between 0 and 1")
        if self.rounds < 0:
            raise ValueError(f"structure.rounds={self.rounds}: expected a whole number >= 0")
        if not 0 < self.step < 1:
            raise ValueError(f"structure.step={self.step}: expected a share of a block's units between 0 and 1")

    def check(self, budget: Budget) -> None:
        super().check(budget)
        if any(layer.experts > 1 for layer in budget.layers):
            raise ValueError(
                "structure=search: expected a model without experts; choose another structure for this one"
            )

    def trials(self, scores: Scores, layer: int) -> list[Trial]:
        """What is measured of a layer: each block at each level, at least one unit left."""
        score_G, score_I = of_units(scores, layer)
        heads, neurons = without(score_G, 0), without(score_I, 0)
        return [
            *(Trial("attention", n, LayerPlan(without(score_G, n), neurons)) for n in self._removed(len(heads))),
            *(Trial("mlp", n, LayerPlan(heads, without(score_I, n))) for n in self._removed(len(neurons))),
        ]

    def _removed(self, units: int) -> list[int]:
        return sorted({n for level in self.levels if 0 < (n := math.floor(level * units + 0.5)) < units})

    def in_nats(self, scores: Scores, divergences: Sequence[Sequence[float]], budget: Budget) -> Scores:
        """The same ranking within each block, in nats per parameter.

        divergences: of each layer's trials, in their order. Between two levels a unit has the share of the added
        divergence that it has of the added scores; then the lower convex envelope makes a later unit never cheaper than
        an earlier one.
        """
        heads, neurons = [], []
        for i, (nats, prices) in enumerate(zip(divergences, budget.layers, strict=True)):
            known = by_block(self.trials(scores, i), nats)
            score_G, score_I = of_units(scores, i)
            heads.append((spread(score_G, known["attention"]) / prices.kv_head_price)[:, None])
            neurons.append(spread(score_I, known["mlp"]) / prices.neuron_price)
        return Scores(tuple(heads), tuple(neurons))

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """`scores` on a common scale, as `in_nats` makes them."""
        heads = [score_GC.mean(dim=1) for score_GC in scores.kv_heads]
        return one_ranking(self, heads, list(scores.neurons), budget)


def by_block(trials: Sequence[Trial], nats: Sequence[float]) -> dict[str, dict[int, float]]:
    """Of each block: how many units had left -> what was measured then, in nats a token."""
    known: dict[str, dict[int, float]] = {block: {} for block in BLOCKS}
    for trial, one in zip(trials, nats, strict=True):
        known[trial.block][trial.removed] = one
    return known


def of_units(scores: Scores, layer: int) -> tuple[Tensor, Tensor]:
    """score_G and score_I of a layer: what a unit's channels score together."""
    return scores.kv_heads[layer].sum(dim=1), scores.neurons[layer]


def without(score_U: Tensor, removed: int) -> tuple[int, ...]:
    """The units that stay when so many of the lowest have left."""
    return highest(score_U, len(score_U) - removed)


def spread(score_U: Tensor, measured: dict[int, float]) -> Tensor:
    """nats_U: what each unit adds when it leaves after all that score lower; rises with the score.

    measured: how many of the lowest units had left -> the divergence then, in nats a token.
    """
    order = score_U.argsort(descending=True, stable=True).flip(0)  # as `highest` takes them out
    cost_U = score_U[order].double()
    cost_U = cost_U.clamp_min(1e-9 * float(cost_U.max())) if cost_U.max() > 0 else torch.ones_like(cost_U)
    error = torch.cat([torch.zeros(1).double(), cost_U.cumsum(0)])
    divergence, start, slope = torch.zeros_like(error), 0, 1.0
    for end, nats in sorted(measured.items()):
        rise = max(nats - float(divergence[start]), LEAST)
        slope = rise / float(error[end] - error[start])
        divergence[start : end + 1] = divergence[start] + slope * (error[start : end + 1] - error[start])
        start = end
    divergence[start:] = divergence[start] + slope * (error[start:] - error[start])  # beyond the last level
    nats_U = torch.empty_like(cost_U)
    # within a straight piece of the envelope the score decides
    nats_U[order] = _convex_steps(divergence.tolist()) * (1 + 1e-9 * torch.arange(len(order)).double())
    return nats_U


def _convex_steps(values: list[float]) -> Tensor:
    """Differences of the lower convex envelope of a sequence (Andrew's monotone chain)."""
    corners = [0]
    for right in range(1, len(values)):
        while len(corners) > 1 and _slope(values, corners[-2], corners[-1]) >= _slope(values, corners[-1], right):
            corners.pop()
        corners.append(right)
    pieces = pairwise(corners)
    return torch.tensor([_slope(values, a, b) for a, b in pieces for _ in range(b - a)], dtype=torch.float64)


def _slope(values: list[float], left: int, right: int) -> float:
    return (values[right] - values[left]) / (right - left)
