"""Prices and the budget: what a unit costs in parameters, and how many parameters must leave."""

from dataclasses import dataclass

from flap.allocation.plan import PruningPlan
from flap.models import ModelAdapter


@dataclass(frozen=True)
class LayerPrices:
    """One layer's units and the parameters that leave with each, counted from its tensors.

    Where a layer has experts, all keep the same number of neurons: `neurons` is that of one, and a unit takes a neuron
    from every one of them.
    """

    kv_heads: int
    kv_head_price: int
    neurons: int
    neuron_price: int
    queries_per_group: int
    experts: int = 1

    @property
    def attention(self) -> int:
        return self.kv_heads * self.kv_head_price

    @property
    def mlp(self) -> int:
        return self.neurons * self.neuron_price

    @property
    def total(self) -> int:
        return self.attention + self.mlp


@dataclass(frozen=True)
class Budget:
    """`ratio` of the prunable parameters of all layers must leave, to within one unit."""

    layers: tuple[LayerPrices, ...]
    ratio: float

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)

    @property
    def to_remove(self) -> float:
        return self.ratio * self.total

    def kept(self, plan: PruningPlan) -> int:
        """Prunable parameters that stay under a plan."""
        pairs = zip(self.layers, plan.layers, strict=True)
        return sum(
            len(kept.kv_heads) * layer.kv_head_price + len(kept.neurons) // layer.experts * layer.neuron_price
            for layer, kept in pairs
        )


def price(adapter: ModelAdapter, ratio: float) -> Budget:
    """Count the prices of every layer from its tensors."""
    return Budget(tuple(_price_layer(adapter, i) for i in range(len(adapter.layers))), ratio)


def _price_layer(adapter: ModelAdapter, layer: int) -> LayerPrices:
    attention, mlp = adapter.blocks(layer)
    return LayerPrices(
        attention.num_units,
        attention.unit_price,
        mlp.num_units // mlp.num_experts,
        mlp.unit_price * mlp.num_experts,
        adapter.queries_per_group(layer),
        mlp.num_experts,
    )
