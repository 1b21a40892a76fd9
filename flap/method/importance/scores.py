"""The scores of all layers, and their file. Runs that differ in the ratio share scores that took a walk.

Legend: G attention units (KV heads) · C channels of a unit · I input channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.models import Pair
from flap.storage import Kind

BY_LAYER = ("routed_power", "divergences")  # fields with some numbers for each layer


@dataclass(frozen=True)
class Scores:
    """The scores of all layers, higher = keep: score_GC of attention (a row for each unit), score_I of MLP units.

    `inverse_power` and `routed_power` are for structures that scale errors by them; both are empty without calibration,
    and where the scores are no squared output errors.
    """

    layers: tuple[Pair[Tensor], ...]  # in float32 on the CPU, finite
    inverse_power: tuple[float, ...] = ()  # of each layer (`LayerStatistics`)
    routed_power: tuple[
        tuple[float, ...], ...
    ] = ()  # of each member of each layer's MLP (`LayerStatistics`)
    divergences: tuple[
        tuple[float, ...], ...
    ] = ()  # of each layer's trials, in nats a token; empty without a search

    @classmethod
    def joined(cls, parts: Iterable["Scores"]) -> "Scores":
        """Return the scores of all layers, from parts with some of the layers each, before a search has measured."""
        parts = list(parts)
        return cls(
            tuple(layer for part in parts for layer in part.layers),
            tuple(power for part in parts for power in part.inverse_power),
            tuple(power for part in parts for power in part.routed_power),
        )


def write_scores(scores: Scores, path: Path) -> None:
    """Write the scores of some layers to one safetensors file; other numbers in float64."""
    tensors = {"inverse_power": torch.tensor(scores.inverse_power, dtype=torch.float64)}
    for i, layer in enumerate(scores.layers):
        tensors |= {f"{i}.{block}": score.contiguous() for block, score in layer._asdict().items()}
    for name in BY_LAYER:
        for i, values in enumerate(getattr(scores, name)):
            tensors[f"{i}.{name}"] = torch.tensor(values, dtype=torch.float64)
    save_file(tensors, path)


def read_scores(path: Path) -> Scores:
    """Read the scores of the layers in a file."""
    tensors = load_file(path)
    power = tensors.pop("inverse_power").tolist()
    layers = range(1 + max(int(name.split(".")[0]) for name in tensors))
    scores = tuple(Pair(*(tensors[f"{i}.{block}"] for block in Pair._fields)) for i in layers)
    numbers = {
        name: tuple(
            tuple(tensors[f"{i}.{name}"].tolist()) for i in layers if f"{i}.{name}" in tensors
        )
        for name in BY_LAYER
    }
    return Scores(scores, tuple(power), **numbers)


SCORES: Kind[Scores] = Kind("scores", write_scores, read_scores)
