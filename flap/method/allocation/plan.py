"""The pruning plan, which lists the units that stay in each layer.

A unit is removed as a whole: a KV head with its query heads, a neuron of an MLP, or an expert. A
plan can be saved to a file, compared with another plan, and applied to another copy of the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flap.models import Pair
from flap.storage import load_json, write_text

# The indices of the kept units of one layer, ascending. The units of the attention are KV heads.
# The units of the MLP are neurons or experts. If the MLP has several members, such as experts, unit
# u of member m has the index m · U + u, where U is the number of units of a member in the dense
# model.
LayerPlan: TypeAlias = Pair[tuple[int, ...]]


@dataclass(frozen=True)
class PruningPlan:
    """The kept units of every layer, from the first layer to the last."""

    layers: tuple[LayerPlan, ...]
    # for each layer, the kind of its MLP's units ("neuron" or "expert"); empty if the MLP units of
    # all layers are neurons
    mlp_units: tuple[str, ...] = field(default=(), compare=False)
    # for each layer, the numbers of units that its attention and its MLP have in the dense model;
    # empty if these numbers are unknown
    dense: tuple[Pair[int], ...] = field(default=(), compare=False)

    def save(self, path: Path) -> None:
        """Write the plan to a JSON file, atomically."""
        write_text(path, json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as the JSON object that `save` writes."""
        units = self.mlp_units or ("neuron",) * len(self.layers)
        plain: dict[str, Any] = {
            "layers": [
                {"kv_heads": list(kept.attention), f"{unit}s": list(kept.mlp)}
                for unit, kept in zip(units, self.layers, strict=True)
            ]
        }
        if self.dense:
            plain["dense"] = [
                {"kv_heads": count.attention, f"{unit}s": count.mlp}
                for unit, count in zip(units, self.dense, strict=True)
            ]
        return plain

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan that `save` has written.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file contains no plan. The message names the missing or invalid field.
        """
        plain = load_json(path)
        layers = []
        units = []
        for i, entry in enumerate(_entries(plain, "layers")):
            unit = "expert" if "experts" in entry else "neuron"
            where = f"'layers', entry {i}"
            heads = _numbers(entry, "kv_heads", where)
            layers.append(LayerPlan(heads, _numbers(entry, f"{unit}s", where)))
            units.append(unit)

        dense = []
        if "dense" in plain:
            counts = _entries(plain, "dense")
            if len(counts) != len(layers):
                raise ValueError(
                    f"'dense' has {len(counts)} layers, but 'layers' has {len(layers)}"
                )
            for i, (count, unit) in enumerate(zip(counts, units, strict=True)):
                where = f"'dense', entry {i}"
                dense.append(
                    Pair(_number(count, "kv_heads", where), _number(count, f"{unit}s", where))
                )
        return cls(tuple(layers), tuple(units), tuple(dense))


def _entries(plain: Any, field: str) -> list[dict[str, Any]]:
    """Return the list in a field of a plan's JSON. All of its items must be JSON objects.

    plain: the parsed JSON of the plan.

    Raises:
        ValueError: the value is not a list of JSON objects, or the list is empty.
    """
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
