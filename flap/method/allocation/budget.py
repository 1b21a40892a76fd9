"""The budget of a plan: the share of parameters to remove, and bounds such as a maximum of bytes.

A plan lists the units that stay in each layer. A unit is removed as a whole: a KV head with its
query heads, a neuron of an MLP, or an expert. A block is the attention or the MLP of a layer. The
dense model is the model before pruning.

Legend: The suffix K is the axis of the numbers of units that a block can keep (0, 1, 2, …, all
units). For example, cost_K[k] is the cost of a block that keeps k units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flap.method.allocation.plan import PruningPlan
from flap.models import Block, ModelAdapter, Pair

# For each layer, the number of units that its attention keeps, and the number of units that its MLP
# keeps. If a block has several members, such as the experts of a mixture, the number says how many
# units each single member keeps.
Widths = Sequence[Pair[int]]
STEPS = 40  # number of ratios that the bisection in `lowest_ratio` tries
# minimum price of a unit, as a share of the highest price of all units; above 0, because scores are
# divided by prices
LEAST_PRICE = 1e-9


@dataclass(frozen=True)
class Units:
    """The units of a block.

    If the block has several members, such as experts, all members keep the same number of units. So
    one unit in this class stands for one unit of each member.
    """

    count: int
    price: int  # number of parameters that are removed with a unit, counted from the tensors
    queries: int = 1  # number of query heads of one attention unit
    members: int = 1  # number of members of the block; 1 if each unit is a whole expert
    fewest: int = 0  # smallest number of units that a plan may keep
    unit: str = "neuron"  # kind of an MLP's units: "neuron" or "expert"; ignored for an attention
    channels: int = 1  # number of channels (inputs of an output projection) of a unit

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

    The cost of a model is `fixed` plus the costs of all blocks. The cost of a block depends on the
    number of units that the block keeps (`costs`).
    """

    target: str  # name of the target in the config section `target`, such as "bytes"
    asked: float  # the highest allowed cost: the value of the target in the config
    fixed: float  # cost of the parts of the model that pruning does not change
    # for the attention and the MLP of each layer, cost_K with the costs of keeping 0, 1, 2, … units
    costs: tuple[Pair[Tensor], ...]
    size: float = 0  # cost of one parameter; 0 if the target does not count parameters
    # the part of `costs` that does not come from parameters, such as the bytes of keys and values;
    # empty unless the target counts both parameters and something else
    beside: tuple[Pair[Tensor], ...] = ()

    def cost(self, widths: Widths) -> float:
        """Return the cost of a model whose blocks keep the numbers of units in `widths`."""
        return self.fixed + _sum(self.costs, widths)

    def cost_of(self, parameters: int, widths: Widths) -> float:
        """Return the cost of a model with the given number of parameters and the given widths.

        Call this method only if the bound's target counts parameters, as target.bytes does. The
        method `cost` does not get the number of parameters, and assumes the largest number that a
        model with these widths can have.
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
        """Return a dict with the requested cost, the dense model's cost, and a pruned model's cost.

        widths: the number of units that each block of the pruned model keeps.
        """
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
    """The share of parameters that a plan must remove, and upper bounds on the model's costs.

    Without bounds, a plan removes this share to within one unit.
    """

    layers: tuple[Pair[Units], ...]
    # The share of the prunable parameters to remove. If there are bounds, no plan that removes a
    # smaller share can meet them, but a larger share may be necessary.
    ratio: float
    bounds: tuple[Bound, ...] = ()  # upper bounds on costs of the pruned model

    @property
    def total(self) -> int:
        """The number of prunable parameters of all layers."""
        return sum(units.total for layer in self.layers for units in layer)

    @property
    def to_remove(self) -> float:
        """The number of parameters to remove."""
        return self.ratio * self.total

    def within(self, bounds: tuple[Bound, ...]) -> "Budget":
        """Return a copy of this budget with the given bounds.

        If every plan that meets the bounds must remove a higher share of parameters than `ratio`,
        this higher share (`_least_share`) is the ratio of the copy.
        """
        ratios = [self.ratio, *map(self._least_share, bounds)]
        return replace(self, ratio=max(ratios), bounds=bounds)

    def _least_share(self, bound: Bound) -> float:
        """Return a lower limit on the share of parameters that must be removed to meet a bound.

        The limit is computed as if every removed parameter saved as much cost as a parameter of the
        block with the highest cost per parameter. A higher share may be necessary.
        """
        most = 0.0
        for layer, costs in zip(self.layers, bound.prices, strict=True):
            for units, cost in zip(layer, costs, strict=True):
                if units.price:
                    most = max(most, cost / units.price)
        return bound.excess / most / self.total if most else 0.0

    @property
    def prices(self) -> list[Pair[float]]:
        """For each block, the price of one unit.

        Structures that rank units by errors or divergences divide each unit's error or divergence
        by its price. If the dense model exceeds no bound, the price is the number of parameters of
        the unit. If the dense model exceeds one bound, the price is the cost that the removal of
        the unit saves, as a share of `Bound.excess`. If it exceeds several bounds, the price is the
        sum of these shares over all exceeded bounds.
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
        # without this minimum, a unit whose removal saves no cost would have the price 0
        least = LEAST_PRICE * max(price for pair in pairs for price in pair)
        return [Pair(max(heads, least), max(neurons, least)) for heads, neurons in pairs]

    def widths(self, plan: PruningPlan) -> Widths:
        """Return the number of units that a plan keeps in each block (`Widths`)."""
        widths = []
        for layer, kept in zip(self.layers, plan.layers, strict=True):
            heads = len(kept.attention) // layer.attention.members
            widths.append(Pair(heads, len(kept.mlp) // layer.mlp.members))
        return widths

    def named(self, plan: PruningPlan) -> PruningPlan:
        """Return a copy of a plan that also describes the units of the dense model.

        The copy has the kind of each layer's MLP units (`mlp_units`), and the numbers of units that
        each layer has in the dense model (`dense`).
        """
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
    """Return a budget with the lowest ratio for which the plan meets all bounds of `budget`.

    The ratio is found by bisection. `widths_at` makes a plan for each ratio that is tried. The
    returned budget has no bounds. If `budget` has no bounds, it is returned unchanged.

    widths_at: a function that gets a budget, and returns the number of units that each block keeps
        in the plan for this budget.
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
    """Return a budget without bounds for removing the share `ratio` of the prunable parameters.

    The units of every layer and their parameters are counted from the tensors of the model.
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
