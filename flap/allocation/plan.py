"""The pruning plan: which units stay. It is data: it can be saved, compared, and applied to another copy of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair

# Kept units of one layer, ascending: KV heads (each with its query heads) and MLP neurons.
# Neuron i of expert e has the number e · I + i, where I is the number of neurons of an expert in the dense model.
LayerPlan: TypeAlias = Pair[tuple[int, ...]]


@dataclass(frozen=True)
class PruningPlan:
    """The kept units of every layer, first to last.

    nats: for a structure that measures, the divergence from the dense model in nats a token: of its first plan, then
    of each better plan; the last one is this plan's. Empty for other structures.
    """

    layers: tuple[LayerPlan, ...]
    nats: tuple[float, ...] = field(default=(), compare=False)

    def with_layer(self, index: int, layer: LayerPlan) -> "PruningPlan":
        """Return a plan that differs in one layer."""
        return PruningPlan((*self.layers[:index], layer, *self.layers[index + 1 :]))

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, list[dict[str, Sequence[int]]]]:
        """Return the plan as `save` writes it."""
        return {"layers": [{"kv_heads": list(kept.attention), "neurons": list(kept.mlp)} for kept in self.layers]}

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan that `save` has written."""
        return cls.from_dict(json.loads(path.read_text()))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "PruningPlan":
        """Return the plan that `to_dict` has made this of."""
        return cls(tuple(LayerPlan(tuple(layer["kv_heads"]), tuple(layer["neurons"])) for layer in plain["layers"]))
