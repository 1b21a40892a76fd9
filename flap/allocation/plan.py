"""The pruning plan: which units stay. It is data: it can be saved, compared, and applied to another copy of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair

# Kept units of one layer, ascending: KV heads (each with its query heads) and MLP neurons.
# Neuron i of expert e has the number e · I + i, where I is the number of neurons of an expert in the dense model.
# Where whole experts leave, the MLP units are experts.
LayerPlan: TypeAlias = Pair[tuple[int, ...]]


@dataclass(frozen=True)
class PruningPlan:
    """The kept units of every layer, first to last.

    nats: after the rounds of a search, the divergence from the dense model in nats a token: of its first plan, then
    of each better plan; the last one is this plan's. Empty without rounds. whole_experts: the layers whose MLP
    units are experts.
    """

    layers: tuple[LayerPlan, ...]
    nats: tuple[float, ...] = field(default=(), compare=False)
    whole_experts: frozenset[int] = frozenset()

    def with_layer(self, index: int, layer: LayerPlan) -> "PruningPlan":
        """Return a plan that differs in one layer."""
        return PruningPlan((*self.layers[:index], layer, *self.layers[index + 1 :]))

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, list[dict[str, Sequence[int]]]]:
        """Return the plan as `save` writes it."""
        names = ("experts" if i in self.whole_experts else "neurons" for i in range(len(self.layers)))
        pairs = zip(names, self.layers, strict=True)
        return {"layers": [{"kv_heads": list(kept.attention), name: list(kept.mlp)} for name, kept in pairs]}

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan that `save` has written."""
        return cls.from_dict(json.loads(path.read_text()))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "PruningPlan":
        """Return the plan that `to_dict` has made this of."""
        layers = plain["layers"]
        plans = (LayerPlan(tuple(one["kv_heads"]), tuple(one.get("experts") or one["neurons"])) for one in layers)
        whole_experts = frozenset(i for i, one in enumerate(layers) if "experts" in one)
        return cls(tuple(plans), whole_experts=whole_experts)
