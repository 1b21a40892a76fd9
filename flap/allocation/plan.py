"""The plan: which units stay. Data, so it can be saved, compared between runs, and applied to a fresh model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class LayerPlan:
    """Kept units of one layer, ascending: KV heads (each with its query heads) and MLP neurons.

    Neuron i of expert e counts as number e · I + i, where each expert of the dense layer has I.
    """

    kv_heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Kept units of every layer, first to last."""

    layers: tuple[LayerPlan, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, list[dict[str, list[int]]]]:
        plain: dict[str, list[dict[str, list[int]]]] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read what `save` wrote."""
        layers = json.loads(path.read_text())["layers"]
        return cls(tuple(LayerPlan(tuple(one["kv_heads"]), tuple(one["neurons"])) for one in layers))
