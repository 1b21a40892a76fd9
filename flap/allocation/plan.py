"""The pruning plan: which units stay. It is data: it can be saved, compared, and applied to another copy of a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair

# Kept units of one layer, ascending: KV heads (each with its query heads) and MLP neurons.
# Unit u of member m of a block has the number m · U + u, where U is the number of units of a member in the dense model.
LayerPlan: TypeAlias = Pair[tuple[int, ...]]


@dataclass(frozen=True)
class PruningPlan:
    """The kept units of every layer, first to last."""

    layers: tuple[LayerPlan, ...]
    # the kind of unit of each layer's MLP; empty: neurons
    mlp_units: tuple[str, ...] = field(default=(), compare=False)
    dropped: tuple[int, ...] = ()  # the layers that leave whole, ascending; they keep no unit

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps(self.to_dict()) + "\n")

    @property
    def runs(self) -> dict[int, int]:
        """The dropped layers that follow each other: the last of them -> the first."""
        found: dict[int, int] = {}
        for i in self.dropped:
            found[i] = found.pop(i - 1, i)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `save` writes it."""
        names = self.mlp_units or ("neuron",) * len(self.layers)
        pairs = zip(names, self.layers, strict=True)
        layers = [{"kv_heads": list(kept.attention), f"{name}s": list(kept.mlp)} for name, kept in pairs]
        return {"layers": layers} | ({"dropped_layers": list(self.dropped)} if self.dropped else {})

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan that `save` has written."""
        return cls.from_dict(json.loads(path.read_text()))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "PruningPlan":
        """Return the plan that `to_dict` has made this of."""
        units = ["expert" if "experts" in one else "neuron" for one in plain["layers"]]
        pairs = zip(plain["layers"], units, strict=True)
        layers = (LayerPlan(tuple(one["kv_heads"]), tuple(one[f"{unit}s"])) for one, unit in pairs)
        return cls(tuple(layers), mlp_units=tuple(units), dropped=tuple(plain.get("dropped_layers", ())))
