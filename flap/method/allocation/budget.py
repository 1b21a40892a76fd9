"""Prices and the budget: how many parameters each unit has, how much is to be removed, what may be left at most.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flap.method.allocation.plan import PruningPlan
from flap.models import Block, ModelAdapter, Pair

Widths = Sequence[
    Pair[int]
]  # the units that each layer keeps; of a block with members, the units of one
STEPS = 40  # of a bisection of ratios
LEAST_PRICE = 1e-9  # of the highest price, so that scores can be divided by all of them


@dataclass(frozen=True)
class Units:
    """The units of one block, or of each of its members, which keep as many: then a unit is one of every member."""

    count: int
    price: int  # of a unit, in parameters, counted from the tensors
    queries: int = 1  # the query heads of one attention unit
    members: int = 1  # how many keep the same number of units
    fewest: int = 0  # how many stay whatever a structure says (`Block.fewest`)
    unit: str = "neuron"  # what a unit of an MLP is called
    channels: int = 1  # that a unit has at the output projection, of one member

    @property
    def total(self) -> int:
        """The prunable parameters of the block."""
        return self.count * self.price

    @property
    def fixed(self) -> bool:
        """Whether no unit may be removed: there is none, or all of them must stay."""
        return self.count <= self.fewest


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that a pruned model may cost: `fixed` + Σ over all blocks of cost_K at the block's width."""

    target: str  # the name in the config, "bytes"
    asked: float  # the value there, in its unit
    fixed: float  # the cost of all that stays
    costs: tuple[
        Pair[Tensor], ...
    ]  # cost_K of the blocks of each layer, which does not fall from one K to the next
    size: float = 0  # the cost of a parameter; 0: the target does not count them
    beside: tuple[Pair[Tensor], ...] = ()  # of `costs`, what is not of parameters

    def cost(self, widths: Widths) -> float:
        """Return the cost of a model of these widths."""
        return self.fixed + _sum(self.costs, widths)

    def cost_of(self, parameters: int, widths: Widths) -> float:
        """Return the cost of a model with so many parameters, where the bound has the most there may be."""
        return self.size * parameters + _sum(self.beside, widths[: len(self.beside)])

    @property
    def dense(self) -> float:
        """The cost of the dense model."""
        return self.fixed + sum(float(cost_K[-1]) for costs in self.costs for cost_K in costs)

    @property
    def excess(self) -> float:
        """How much the dense model costs beyond the most; at least 0."""
        return max(0.0, self.dense - self.asked)

    def values(self, widths: Widths) -> dict[str, float]:
        """Return what was asked, what the dense model has and what one of these widths has, in the target's unit."""
        return {"asked": self.asked, "dense": self.dense, "realised": self.cost(widths)}

    @property
    def prices(self) -> list[Pair[float]]:
        """What a unit of each block costs, on average over the block."""
        return [
            Pair(*(float(cost_K[-1] - cost_K[0]) / max(len(cost_K) - 1, 1) for cost_K in pair))
            for pair in self.costs
        ]


def _sum(costs: Sequence[Pair[Tensor]], widths: Widths) -> float:
    blocks = (
        block for layer in zip(costs, widths, strict=True) for block in zip(*layer, strict=True)
    )
    return sum(float(cost_K[width]) for cost_K, width in blocks)


@dataclass(frozen=True)
class Budget:
    """The budget: how much is to be removed, to within one unit. A plan is within all bounds, if there are any."""

    layers: tuple[Pair[Units], ...]
    ratio: float  # the share of the prunable parameters of all layers; with bounds, what any plan removes at least
    bounds: tuple[Bound, ...] = ()  # within which no more is removed than they take

    @property
    def total(self) -> int:
        """The prunable parameters of all layers."""
        return sum(units.total for layer in self.layers for units in layer)

    @property
    def to_remove(self) -> float:
        """The number of parameters to remove."""
        return self.ratio * self.total

    def within(self, bounds: tuple[Bound, ...]) -> "Budget":
        """Return the budget with these bounds."""
        return replace(
            self, ratio=max([self.ratio, *map(self._least_share, bounds)]), bounds=bounds
        )

    def _least_share(self, bound: Bound) -> float:
        """Return the share that is removed if all that is removed is what the bound counts most for its parameters."""
        pairs = (
            pair
            for both in zip(self.layers, bound.prices, strict=True)
            for pair in zip(*both, strict=True)
        )
        most = max(cost / units.price for units, cost in pairs if units.price)
        return bound.excess / most / self.total if most else 0.0

    @property
    def prices(self) -> list[Pair[float]]:
        """What one unit of each block counts where units are ranked: its parameters.

        With bounds, the sum over those that are exceeded of the share of the excess that goes with the unit.
        """
        shares = [(bound.excess, bound.prices) for bound in self.bounds if bound.excess]
        if not shares:
            return [Pair(*(float(units.price) for units in layer)) for layer in self.layers]
        pairs = [
            Pair(*(sum(costs[i][block] / excess for excess, costs in shares) for block in range(2)))
            for i in range(len(self.layers))
        ]
        least = LEAST_PRICE * max(
            price for pair in pairs for price in pair
        )  # a unit may cost nothing
        return [Pair(*(max(price, least) for price in pair)) for pair in pairs]

    def widths(self, plan: PruningPlan) -> Widths:
        """Return the numbers of units that each layer of a plan keeps."""
        pairs = zip(self.layers, plan.layers, strict=True)
        return [
            Pair(*(len(kept) // units.members for kept, units in zip(p, layer, strict=True)))
            for layer, p in pairs
        ]

    def named(self, plan: PruningPlan) -> PruningPlan:
        """Return the plan with what the MLP units of its layers are called, and how many the dense model has."""
        dense = (Pair(*(units.count * units.members for units in layer)) for layer in self.layers)
        return replace(
            plan, mlp_units=tuple(layer.mlp.unit for layer in self.layers), dense=tuple(dense)
        )

    def kept(self, plan: PruningPlan) -> int:
        """Return the number of prunable parameters that a plan keeps."""
        pairs = zip(self.layers, self.widths(plan), strict=True)
        return sum(
            kept * units.price
            for layer, widths in pairs
            for kept, units in zip(widths, layer, strict=True)
        )


def lowest_ratio(budget: Budget, widths_at: Callable[[Budget], Widths]) -> Budget:
    """Return the budget without bounds whose ratio is the lowest one that is within them, found by bisection.

    widths_at: the widths that a structure gives the layers at a ratio. A budget without bounds is returned unchanged.
    """
    if not budget.bounds:
        return budget

    def fits(ratio: float) -> bool:
        widths = widths_at(replace(budget, ratio=ratio, bounds=()))
        return all(bound.cost(widths) <= bound.asked for bound in budget.bounds)

    low = 0.0
    high = 0.0 if fits(0.0) else 1.0
    for _ in range(STEPS if high else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return replace(budget, ratio=high, bounds=())


def price(adapter: ModelAdapter, ratio: float) -> Budget:
    """Return the budget of a model: the units of every layer and their prices, counted from its tensors."""
    pairs = ((adapter.blocks(i), adapter.queries_per_group(i)) for i in range(len(adapter.layers)))
    layers = (
        Pair(_units(blocks.attention, queries), _units(blocks.mlp)) for blocks, queries in pairs
    )
    return Budget(tuple(layers), ratio)


def _units(block: Block, queries: int = 1) -> Units:
    members = 1 if block.whole else len(block.members)
    count = block.num_units // members
    price = block.unit_price * members
    channels = block.columns_UC.shape[1]
    return Units(count, price, queries, members, block.fewest, block.unit, channels)
