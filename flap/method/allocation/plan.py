"""The pruning plan: which units stay. It is data: it can be saved, compared, and applied to another copy of a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair
from flap.storage import load_json, write_text

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
        """Read a plan that `save` has written.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no plan. The message names the field that is wrong.
        """
        plain = load_json(path)
        entries = _entries(plain, "layers")
        counts = _entries(plain, "dense") if "dense" in plain else [None] * len(entries)
        if len(counts) != len(entries):
            raise ValueError(f"'dense' has {len(counts)} layers, but 'layers' has {len(entries)}")
        units: list[str] = []
        layers: list[LayerPlan] = []
        dense: list[Pair[int]] = []
        for i, (entry, count) in enumerate(zip(entries, counts, strict=True)):
            unit = "expert" if "experts" in entry else "neuron"
            kept = f"'layers', entry {i}"
            units.append(unit)
            layers.append(
                LayerPlan(_numbers(entry, "kv_heads", kept), _numbers(entry, f"{unit}s", kept))
            )
            if count is not None:
                total = f"'dense', entry {i}"
                dense.append(
                    Pair(_number(count, "kv_heads", total), _number(count, f"{unit}s", total))
                )
        return cls(tuple(layers), mlp_units=tuple(units), dense=tuple(dense))


def _entries(plain: Any, field: str) -> list[dict[str, Any]]:
    """Return the entries of a plan's field, one object for each layer."""
    entries = plain.get(field) if isinstance(plain, dict) else None
    objects = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not entries or not objects:
        raise ValueError(f"'{field}' must be a list with an object for each layer")
    return list(entries)


def _numbers(entry: Mapping[str, Any], field: str, where: str) -> tuple[int, ...]:
    numbers = entry.get(field)
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise ValueError(f"{where}: '{field}' must be a list of whole numbers")
    return tuple(numbers)


def _number(entry: Mapping[str, Any], field: str, where: str) -> int:
    number = entry.get(field)
    if type(number) is not int:
        raise ValueError(f"{where}: '{field}' must be a whole number")
    return number
