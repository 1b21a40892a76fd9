"""The pruning plan: which units stay. It is data: it can be saved, compared, and applied to another copy of a model."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair
from flap.storage import write_text

# Kept units of one layer, ascending: KV heads (each with its query heads) and MLP neurons.
# Unit u of member m of a block has the number m · U + u, where U is the number of units of a member in the dense model.
LayerPlan: TypeAlias = Pair[tuple[int, ...]]


@dataclass(frozen=True)
class PruningPlan:
    """The kept units of every layer, first to last."""

    layers: tuple[LayerPlan, ...]
    # the kind of unit of each layer's MLP; empty: neurons
    mlp_units: tuple[str, ...] = field(default=(), compare=False)
    # how many units each layer of the dense model has; empty: unknown
    dense: tuple[Pair[int], ...] = field(default=(), compare=False)

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        write_text(path, json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `save` writes it."""
        names = self.mlp_units or ("neuron",) * len(self.layers)
        pairs = list(zip(names, self.layers, strict=True))
        layers = [
            {"kv_heads": list(kept.attention), f"{name}s": list(kept.mlp)} for name, kept in pairs
        ]
        counts = zip(names, self.dense, strict=False)
        dense = [{"kv_heads": count.attention, f"{name}s": count.mlp} for name, count in counts]
        return {"layers": layers} | ({"dense": dense} if dense else {})

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan that `save` has written."""
        plain = json.loads(path.read_text())
        units = ["expert" if "experts" in one else "neuron" for one in plain["layers"]]
        pairs = zip(plain["layers"], units, strict=True)
        layers = (LayerPlan(tuple(one["kv_heads"]), tuple(one[f"{unit}s"])) for one, unit in pairs)
        dense = (Pair(*one.values()) for one in plain.get("dense", ()))
        return cls(tuple(layers), mlp_units=tuple(units), dense=tuple(dense))
