"""Prices and the budget: how many parameters each unit has, and how many parameters are to be removed."""

from dataclasses import dataclass

from flap.allocation.plan import LayerPlan, PruningPlan
from flap.models import Block, ModelAdapter, Pair


@dataclass(frozen=True)
class Units:
    """The units of one block: their number, and the price of each in parameters, counted from the tensors.

    queries: the query heads of one attention unit. experts: the number of MLPs that a router chooses from. All experts
    keep the same number of neurons, so `count` is the number of one expert and a unit is one neuron of every expert.
    """

    count: int
    price: int
    queries: int = 1
    experts: int = 1

    @property
    def total(self) -> int:
        """The prunable parameters of the block."""
        return self.count * self.price


@dataclass(frozen=True)
class Budget:
    """The budget: a share `ratio` of the prunable parameters of all layers is to be removed, to within one unit."""

    layers: tuple[Pair[Units], ...]
    ratio: float

    @property
    def total(self) -> int:
        """The prunable parameters of all layers."""
        return sum(units.total for layer in self.layers for units in layer)

    @property
    def to_remove(self) -> float:
        """The number of parameters to remove."""
        return self.ratio * self.total

    @property
    def has_experts(self) -> bool:
        """Whether a layer has experts instead of one MLP."""
        return any(layer.mlp.experts > 1 for layer in self.layers)

    def kept(self, plan: PruningPlan) -> int:
        """Return the number of prunable parameters that a plan keeps."""
        return sum(_kept(units, layer_plan) for units, layer_plan in zip(self.layers, plan.layers, strict=True))


def _kept(layer: Pair[Units], plan: LayerPlan) -> int:
    pairs = zip(layer, plan, strict=True)
    return sum(len(kept) // units.experts * units.price for units, kept in pairs)


def price(adapter: ModelAdapter, ratio: float) -> Budget:
    """Return the budget of a model: the units of every layer and their prices, counted from its tensors."""
    return Budget(tuple(_price_layer(adapter, i) for i in range(len(adapter.layers))), ratio)


def _price_layer(adapter: ModelAdapter, layer: int) -> Pair[Units]:
    def units(block: Block, queries: int = 1) -> Units:
        return Units(
            block.num_units // block.num_experts, block.unit_price * block.num_experts, queries, block.num_experts
        )

    attention, mlp = adapter.blocks(layer)
    return Pair(units(attention, adapter.queries_per_group(layer)), units(mlp))
