"""The time of a request by the widths of the layers, measured on the device at hand: bounds for targets in time.

Legend: K kept units of a block, from 0 to all of them · W measured widths, ascending; the last one is the dense one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import Bound, Budget, LayerPlan, PruningPlan, Structure, Units
from flap.compression import NoCompensation, slice_layer
from flap.config import TIME_TARGETS, TargetConfig, gigabytes, require
from flap.evaluation import Efficiency
from flap.evaluation.request_cost import weight_bytes
from flap.models import Pair, PlacedModel, adapt
from flap.storage import Cache, Kind, as_json, ranks
from flap.storage.progress import progress

Widths = Sequence[Pair[int]]
Times = list[list[float]]  # of a request at each width W, and of the decoding in it, in milliseconds

LAYER_TIMES: Kind[Times] = as_json("layer_times")
VERSION = 1  # raise it when the measurement changes
TOLERANCE, CORRECTIONS = 0.03, 3
SHARES = (0.125, 0.25, 0.5, 0.75)  # of a block's units: the widths at which requests are timed, besides the dense one


@dataclass(frozen=True)
class AlikeBlocks:
    """The attention, or the MLP, of all layers where it has the same units."""

    block: str  # "attention" or "mlp"
    units: Units
    layers: frozenset[int]

    def widths(self, structure: Structure) -> list[int]:
        """Return the widths W that a structure may give these blocks: in its multiples, and 0 where all may leave."""
        size = getattr(structure.block_sizes, self.block)
        counts = {max(1, round(share * self.units.count / size)) * size for share in SHARES}
        counts |= set() if getattr(Pair(structure.min_heads, structure.min_neurons), self.block) else {0}
        allowed = range(self.units.fewest, self.units.count)
        return [*sorted(count for count in counts if count in allowed), self.units.count]

    def at(self, width: int, dense: Widths) -> Widths:
        """Return the widths of a model in which these blocks have this width and all others are dense."""
        return [one._replace(**{self.block: width}) if i in self.layers else one for i, one in enumerate(dense)]


@dataclass(frozen=True)
class LayerTimes:
    """The times of a request of the whole model by the widths that a structure may give its layers."""

    budget: Budget
    request: Efficiency
    structure: Structure
    cache: Cache
    key: Mapping[str, Any]  # all that identifies the model, the device and the threads
    units: tuple[bool, bool] = (False, False)  # `Choices.units`

    @cached_property
    def groups(self) -> list[AlikeBlocks]:
        """The blocks, those with the same units together."""
        groups: dict[tuple[str, Units], list[int]] = {}
        for i, layer in enumerate(self.budget.layers):
            for block, units in zip(Pair._fields, layer, strict=True):
                groups.setdefault((block, units), []).append(i)
        return [AlikeBlocks(block, units, frozenset(layers)) for (block, units), layers in groups.items()]

    def measure(self, model: PlacedModel) -> list[Times]:
        """Return for each group the times of a request at each of its widths; last that of the first layer alone.

        What runs is the whole model, with all blocks of the group at that width, because a layer alone would find its
        weights in the processor's cache.

        Raises:
            ValueError: there is no room for a narrower model beside the dense one.
        """
        size = weight_bytes(model.model)
        room = f"a device with {gigabytes(2 * size)} GB free for the dense and a narrower model, with a target in time"
        require(model.fits_in_memory(size), "model.device", model.device, room)
        dense = self.budget.dense_widths
        narrow = [group.at(width, dense) for group in self.groups for width in group.widths(self.structure)[:-1]]
        of_dense, *rest = self.measure_widths(model, narrow + self._first_alone)
        times = iter(rest)
        groups = [[*(next(times) for _ in group.widths(self.structure)[:-1]), of_dense] for group in self.groups]
        return groups + [[one] for one in times]

    @property
    def _first_alone(self) -> list[Widths]:
        """The widths of the model of the first layer, if whole layers may leave."""
        first, *others = self.budget.dense_widths
        return [[first, *(Pair(0, 0) for _ in others)]] if self.structure.layers and others else []

    def measure_widths(self, model: PlacedModel, several: Sequence[Widths]) -> Times:
        """Return the times of a request of the dense model, then of models of these widths; they are cached.

        The models are timed in turns. A time is the median over the turns of its ratio to the dense model's, times the
        median of the dense model's. The first process alone does it: models that run at once slow each other.
        """
        key = {"version": VERSION, **asdict(self.request), "widths": several, "units": self.units}
        key |= {"layers": True} if self.structure.layers else {}
        measure = partial(self._measure_widths, model.model, several)
        return ranks.from_first(lambda: self.cache.get(LAYER_TIMES, {**key, **self.key}, measure)[0])

    def _measure_widths(self, model: PreTrainedModel, several: Sequence[Widths]) -> Times:
        dropped = [[i for i, kept in enumerate(one) if self.structure.layers and not any(kept)] for one in several]
        models = ((self.budget.dense_widths, []), *zip(several, dropped, strict=True))
        turns = [
            [self.request.milliseconds(narrowed(model, self.units, self.budget, *one)) for one in models]
            for _ in progress(range(1 + self.request.repeats), "time layers")
        ]
        times = np.array(turns[1:])  # by turn, model, and whether of the request or of its decoding
        ms: Times = (np.median(times / times[:, :1], axis=0) * np.median(times[:, 0], axis=0)).tolist()
        return ms

    def settle(
        self, model: PlacedModel, budget: Budget, plan_of: Callable[[Budget], PruningPlan]
    ) -> tuple[Budget, PruningPlan]:
        """Return a plan, and the budget that it is within.

        plan_of: makes the plan of a budget. Where requests of its widths take another time than the budget says, by
        more than TOLERANCE, the bounds are corrected and another plan is made, at most CORRECTIONS times.

        Raises:
            ValueError: no plan is within corrected bounds.
        """
        for _ in range(CORRECTIONS):
            plan = plan_of(budget)
            widths = budget.widths(plan)
            bounds = self.corrected(budget.bounds, widths, self.measure_widths(model, [widths]))
            pairs = zip(bounds, budget.bounds, strict=True)
            if all(abs(now.cost(widths) - old.cost(widths)) <= TOLERANCE * old.cost(widths) for now, old in pairs):
                return budget, plan
            budget = replace(budget, bounds=bounds)
            self.structure.check(budget)
        return budget, plan_of(budget)

    def corrected(self, bounds: Sequence[Bound], widths: Widths, times: Times) -> tuple[Bound, ...]:
        """Return the bounds, those in time corrected by the times of the dense model and of one of these widths."""
        shares = dict(zip(TIME_TARGETS, (now / dense for dense, now in zip(*times, strict=True)), strict=True))
        return tuple(
            bound.corrected(widths, bound.dense * shares[bound.target]) if bound.target in shares else bound
            for bound in bounds
        )

    def bounds(self, target: TargetConfig, times: Sequence[Times]) -> tuple[Bound, ...]:
        """Return the bounds of the targets in time. times: as `measure` returns them."""
        bounds = []
        for part, (name, tokens) in enumerate(zip(TIME_TARGETS, (None, self.request.decoded_tokens), strict=True)):
            if (asked := getattr(target, name)) is not None:
                fixed, costs = self._costs([np.array(one)[:, part] for one in times])
                bounds.append(Bound(name, asked, fixed, costs, tokens))
        return tuple(bounds)

    def _costs(self, times: Sequence[np.ndarray]) -> tuple[float, tuple[Pair[Tensor], ...]]:
        """Return what a request takes where all blocks are at their least, and cost_K of each block.

        times: as `measure` returns them. A block's cost is what all of its group take beyond the least, in equal parts;
        between two widths it is a straight line, below the first one it does not change. What a whole layer takes less
        without its attention and MLP, norms and calls among it, is of the attention without units.
        """
        costs = [Pair(torch.zeros(0), torch.zeros(0)) for _ in self.budget.layers]
        fixed = float(times[0][-1])
        for group, ms_W in zip(self.groups, times, strict=False):
            rising_W = rising(ms_W)
            kept_K = np.arange(group.units.count + 1)
            ms_K = np.interp(kept_K, group.widths(self.structure), rising_W - rising_W[0])
            fixed -= float(ms_K[-1])
            for i in group.layers:
                costs[i] = costs[i]._replace(**{group.block: torch.from_numpy(ms_K / len(group.layers))})
        for widths, [ms] in zip(self._first_alone, times[len(self.groups) :], strict=True):
            less = max(0.0, Bound("", 0.0, fixed, tuple(costs)).cost(widths) - ms) / (len(costs) - 1)
            for i in range(1, len(costs)):
                costs[i].attention[0] -= less
        return fixed, tuple(costs)


def narrowed(
    model: PreTrainedModel, units: tuple[bool, bool], budget: Budget, widths: Widths, dropped: Sequence[int] = ()
) -> PreTrainedModel:
    """Return a model whose layers keep their first units, as many as `widths` says; it shares all other tensors.

    dropped: layers that it lacks.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = adapt(copy.deepcopy(model, shared), *units)
    for i, (kept, layer) in enumerate(zip(widths, budget.layers, strict=True)):
        neurons = (e * layer.mlp.count + n for e in range(layer.mlp.members) for n in range(kept.mlp))
        if i not in dropped:
            slice_layer(other, i, LayerPlan(tuple(range(kept.attention)), tuple(neurons)), NoCompensation(), None)
    if dropped:
        other.drop(dropped)
    return other.model


def rising(times_W: np.ndarray) -> np.ndarray:
    """Return times that never fall from one width to the next: halfway between the two nearest such curves."""
    above, below = np.maximum.accumulate(times_W), np.minimum.accumulate(times_W[::-1])[::-1]
    return (above + below) / 2
