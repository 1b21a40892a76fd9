"""The parameters of each unit, the number of parameters to remove, and the bounds on a plan.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flap.method.allocation.plan import PruningPlan
from flap.models import Block, ModelAdapter, Pair

# The numbers of units that the attention and the MLP of each layer keep. For a block with several
# members, such as experts, this is the number of units that each member keeps.
Widths = Sequence[Pair[int]]
STEPS = 40  # number of steps of the bisection that finds the lowest ratio
# minimum price of a unit, as a share of the highest price; above 0, because scores are divided by
# prices
LEAST_PRICE = 1e-9


@dataclass(frozen=True)
class Units:
    """The units of a block.

    If the block has several members, such as experts, a unit consists of one unit of each member.
    """

    count: int
    price: int  # number of parameters that are removed with a unit, counted from the tensors
    queries: int = 1  # number of query heads of one attention unit
    members: int = 1  # number of members of the block, which all keep the same number of units
    fewest: int = 0  # minimum number of units that stay (`Block.fewest`)
    unit: str = "neuron"  # the kind of unit of an MLP, "neuron" or "expert"
    channels: int = 1  # number of input channels of a unit in the output projection of one member

    @property
    def total(self) -> int:
        """The number of prunable parameters of the block."""
        return self.count * self.price

    @property
    def fixed(self) -> bool:
        """Whether no unit may be removed, because there are no units or all units must stay."""
        return self.count <= self.fewest


@dataclass(frozen=True, eq=False)
class Bound:
    """An upper bound on a cost of the pruned model, such as its bytes.

    The cost of a model is `fixed` plus, for each block, the cost of the number of units that the
    block keeps (`costs`).
    """

    target: str  # name of the target in the config, such as "bytes"
    asked: float  # requested value of the target, for example in bytes
    fixed: float  # cost of the parts that pruning does not change
    # cost_K of the two blocks of each layer: the cost of a block that keeps 0, 1, 2, … units
    costs: tuple[Pair[Tensor], ...]
    size: float = 0  # cost of a parameter; 0 if the target does not count parameters
    # the part of `costs` that does not come from parameters, such as the bytes of keys and values,
    # if the target counts parameters as well; otherwise empty
    beside: tuple[Pair[Tensor], ...] = ()

    def cost(self, widths: Widths) -> float:
        """Return the cost of a model with these widths."""
        return self.fixed + _sum(self.costs, widths)

    def cost_of(self, parameters: int, widths: Widths) -> float:
        """Return the cost of a model with this number of parameters and these widths.

        In contrast, `cost` assumes the largest number of parameters that the widths allow.
        """
        return self.size * parameters + _sum(self.beside, widths[: len(self.beside)])

    @property
    def dense(self) -> float:
        """The cost of the dense model."""
        return self.fixed + sum(float(cost_K[-1]) for pair in self.costs for cost_K in pair)

    @property
    def excess(self) -> float:
        """The cost of the dense model minus `asked`, or 0 if this difference is negative."""
        return max(0.0, self.dense - self.asked)

    def values(self, widths: Widths) -> dict[str, float]:
        """Return the requested cost, and the costs of the dense and of the pruned model."""
        return {"asked": self.asked, "dense": self.dense, "realised": self.cost(widths)}

    @property
    def prices(self) -> list[Pair[float]]:
        """For each block, the cost of one unit, averaged over the units of the block."""
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
    """The number of parameters to remove, to within one unit, and the bounds on a plan."""

    layers: tuple[Pair[Units], ...]
    # The share of the prunable parameters to remove. With bounds, the ratio is the smallest share
    # that a plan must remove to meet the bounds.
    ratio: float
    bounds: tuple[Bound, ...] = ()  # units are removed until the model meets all bounds

    @property
    def total(self) -> int:
        """The number of prunable parameters of all layers."""
        return sum(units.total for layer in self.layers for units in layer)

    @property
    def to_remove(self) -> float:
        """The number of parameters to remove."""
        return self.ratio * self.total

    def within(self, bounds: tuple[Bound, ...]) -> "Budget":
        """Return the budget with these bounds.

        The ratio of the returned budget is at least the share that a plan must remove to meet the
        bounds.
        """
        ratios = [self.ratio, *map(self._least_share, bounds)]
        return replace(self, ratio=max(ratios), bounds=bounds)

    def _least_share(self, bound: Bound) -> float:
        """Return the smallest share of parameters that a plan must remove to meet a bound.

        This share is sufficient only if all removed units have the highest cost per parameter.
        """
        most = 0.0
        for layer, costs in zip(self.layers, bound.prices, strict=True):
            for units, cost in zip(layer, costs, strict=True):
                if units.price:
                    most = max(most, cost / units.price)
        return bound.excess / most / self.total if most else 0.0

    @property
    def prices(self) -> list[Pair[float]]:
        """The price of one unit of each block, by which scores are divided before a ranking.

        Without bounds, the price is the number of parameters of the unit. With bounds, the price is
        the cost that the removal of the unit saves, as a share of `Bound.excess`. These shares are
        summed over all bounds that the dense model exceeds.
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
        # the removal of a unit may lower the cost of no bound, but a price must not be 0
        least = LEAST_PRICE * max(price for pair in pairs for price in pair)
        return [Pair(max(heads, least), max(neurons, least)) for heads, neurons in pairs]

    def widths(self, plan: PruningPlan) -> Widths:
        """Return the number of units that a plan keeps in each layer (`Widths`)."""
        widths = []
        for layer, kept in zip(self.layers, plan.layers, strict=True):
            heads = len(kept.attention) // layer.attention.members
            widths.append(Pair(heads, len(kept.mlp) // layer.mlp.members))
        return widths

    def named(self, plan: PruningPlan) -> PruningPlan:
        """Return a plan with the kind of its MLP units, and the widths of the dense model."""
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
    """Find the lowest ratio that meets all bounds, and return a budget with this ratio.

    The ratio is found by bisection. The returned budget has no bounds. A budget without bounds is
    returned unchanged.

    widths_at: a function that returns the widths that a structure gives the layers for a budget.
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
    """Return the budget of a model for a ratio.

    The units of every layer, and their prices, are counted from the tensors of the model.
    """
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
