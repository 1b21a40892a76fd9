"""Prices and the budget: the parameters of each unit, how many to remove, and the bounds on a plan.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flap.method.allocation.plan import PruningPlan
from flap.models import Block, ModelAdapter, Pair

# The number of units that each layer keeps. If a block has members, the units of one member.
Widths = Sequence[Pair[int]]
STEPS = 40  # steps of a bisection of ratios
LEAST_PRICE = 1e-9  # as a share of the highest price, so that scores can be divided by all prices


@dataclass(frozen=True)
class Units:
    """The units of one block. If the block has members, a unit is one unit of every member."""

    count: int
    price: int  # parameters that are removed with a unit, counted from the tensors
    queries: int = 1  # query heads of one attention unit
    members: int = 1  # members of the block, which keep the same number of units
    fewest: int = 0  # units that stay in any case (`Block.fewest`)
    unit: str = "neuron"  # what a unit of an MLP is called
    channels: int = 1  # input channels that a unit has in the output projection of one member

    @property
    def total(self) -> int:
        """The prunable parameters of the block."""
        return self.count * self.price

    @property
    def fixed(self) -> bool:
        """Whether no unit may be removed, because there is none or all of them must stay."""
        return self.count <= self.fewest


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that a pruned model may cost.

    The cost of a model is `fixed` + Σ cost_K at the width of each block, over all blocks.
    """

    target: str  # name of the target in the config, as "bytes"
    asked: float  # value of the target, in its unit
    fixed: float  # cost of everything that pruning does not remove
    costs: tuple[Pair[Tensor], ...]  # cost_K of the blocks of each layer, which never falls with K
    size: float = 0  # cost of a parameter; 0 if the target does not count parameters
    # the share of `costs` that is not for parameters, such as keys and values
    beside: tuple[Pair[Tensor], ...] = ()

    def cost(self, widths: Widths) -> float:
        """Return the cost of a model of these widths."""
        return self.fixed + _sum(self.costs, widths)

    def cost_of(self, parameters: int, widths: Widths) -> float:
        """Return the cost of a model whose parameters were counted.

        The bound assumes the largest number of parameters that a model of these widths may have.
        """
        return self.size * parameters + _sum(self.beside, widths[: len(self.beside)])

    @property
    def dense(self) -> float:
        """The cost of the dense model."""
        return self.fixed + sum(float(cost_K[-1]) for pair in self.costs for cost_K in pair)

    @property
    def excess(self) -> float:
        """How much the dense model costs beyond the bound; at least 0."""
        return max(0.0, self.dense - self.asked)

    def values(self, widths: Widths) -> dict[str, float]:
        """Return the requested cost, and the costs of the dense and of the pruned model."""
        return {"asked": self.asked, "dense": self.dense, "realised": self.cost(widths)}

    @property
    def prices(self) -> list[Pair[float]]:
        """The average cost of a unit of each block."""
        return [Pair(_mean_rise(pair.attention), _mean_rise(pair.mlp)) for pair in self.costs]


def _mean_rise(cost_K: Tensor) -> float:
    return float(cost_K[-1] - cost_K[0]) / max(len(cost_K) - 1, 1)


def _sum(costs: Sequence[Pair[Tensor]], widths: Widths) -> float:
    total = 0.0
    for pair, width in zip(costs, widths, strict=True):
        total += float(pair.attention[width.attention])
        total += float(pair.mlp[width.mlp])
    return total


@dataclass(frozen=True)
class Budget:
    """How much to remove, to within one unit, and the bounds that a plan has to be within."""

    layers: tuple[Pair[Units], ...]
    # the share of the prunable parameters of all layers that is removed; with bounds, the smallest
    # share that a plan must remove to be within them
    ratio: float
    bounds: tuple[Bound, ...] = ()  # units are removed until the model is within all of them

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
        ratios = [self.ratio, *map(self._least_share, bounds)]
        return replace(self, ratio=max(ratios), bounds=bounds)

    def _least_share(self, bound: Bound) -> float:
        """Return the smallest share of parameters that a plan must remove to be within a bound.

        This share is enough if the removed units are the ones that cost the bound most per
        parameter.
        """
        most = 0.0
        for layer, costs in zip(self.layers, bound.prices, strict=True):
            for units, cost in zip(layer, costs, strict=True):
                if units.price:
                    most = max(most, cost / units.price)
        return bound.excess / most / self.total if most else 0.0

    @property
    def prices(self) -> list[Pair[float]]:
        """The price of one unit of each block in a ranking of all units: its parameters.

        With bounds, it is the share of a bound's excess that removing the unit saves, summed over
        all bounds that the dense model exceeds.
        """
        exceeded = [(bound.excess, bound.prices) for bound in self.bounds if bound.excess]
        if not exceeded:
            return [
                Pair(float(layer.attention.price), float(layer.mlp.price)) for layer in self.layers
            ]
        pairs = []
        for i in range(len(self.layers)):
            heads = sum(costs[i].attention / excess for excess, costs in exceeded)
            neurons = sum(costs[i].mlp / excess for excess, costs in exceeded)
            pairs.append(Pair(heads, neurons))
        # the removal of a unit may save nothing of a bound
        least = LEAST_PRICE * max(price for pair in pairs for price in pair)
        return [Pair(max(heads, least), max(neurons, least)) for heads, neurons in pairs]

    def widths(self, plan: PruningPlan) -> Widths:
        """Return the numbers of units that each layer of a plan keeps."""
        widths = []
        for layer, kept in zip(self.layers, plan.layers, strict=True):
            heads = len(kept.attention) // layer.attention.members
            widths.append(Pair(heads, len(kept.mlp) // layer.mlp.members))
        return widths

    def named(self, plan: PruningPlan) -> PruningPlan:
        """Return the plan with the names of its MLP units and the widths of the dense model."""
        names = []
        dense = []
        for attention, mlp in self.layers:
            names.append(mlp.unit)
            dense.append(Pair(attention.count * attention.members, mlp.count * mlp.members))
        return replace(plan, mlp_units=tuple(names), dense=tuple(dense))

    def kept(self, plan: PruningPlan) -> int:
        """Return the number of prunable parameters that a plan keeps."""
        total = 0
        for layer, widths in zip(self.layers, self.widths(plan), strict=True):
            total += widths.attention * layer.attention.price
            total += widths.mlp * layer.mlp.price
        return total


def lowest_ratio(budget: Budget, widths_at: Callable[[Budget], Widths]) -> Budget:
    """Return a budget without bounds, with the lowest ratio within them, found by bisection.

    widths_at: the widths that a structure gives the layers at a ratio. A budget without bounds is
    returned unchanged.
    """
    if not budget.bounds:
        return budget

    def fits(ratio: float) -> bool:
        widths = widths_at(replace(budget, ratio=ratio, bounds=()))
        return all(bound.cost(widths) <= bound.asked for bound in budget.bounds)

    if fits(0.0):
        return replace(budget, ratio=0.0, bounds=())
    low = 0.0
    high = 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return replace(budget, ratio=high, bounds=())


def price(adapter: ModelAdapter, ratio: float) -> Budget:
    """Return the budget of a model, with the units of every layer counted from its tensors."""
    layers = []
    for i in range(len(adapter.layers)):
        attention, mlp = adapter.blocks(i)
        layers.append(Pair(_units(attention, adapter.queries_per_group(i)), _units(mlp)))
    return Budget(tuple(layers), ratio)


def _units(block: Block, queries: int = 1) -> Units:
    members = 1 if block.whole else len(block.members)
    return Units(
        count=block.num_units // members,
        price=block.unit_price * members,
        queries=queries,
        members=members,
        fewest=block.fewest,
        unit=block.unit,
        channels=block.columns_UC.shape[1],
    )
