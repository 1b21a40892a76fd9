"""The scores of all layers, and the file that stores them.

Several runs that differ only in the ratio (the share of the parameters to remove) use the same
file, so that scores are computed only once.

Legend: G: attention units (KV heads) · C: channels of a unit · I: input channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.models import Pair
from flap.storage import Kind

# fields of `Scores` with several values for each layer
BY_LAYER = ("routed_power", "divergences")


@dataclass(frozen=True)
class Scores:
    """The scores of all units of all layers. The lowest-scored units are removed first.

    A structure, which chooses the units that stay, may rank units by the errors that their removal
    causes in the outputs of layers. It may then multiply the scores by the fields `inverse_power`
    and `routed_power`. These fields are empty if there was no calibration, or if scores are not
    squared errors in the outputs.
    """

    # for each layer, the scores of its attention (score_GC) and of its MLP (score_I), all of them
    # finite, in float32 and on the CPU
    layers: tuple[Pair[Tensor], ...]
    # for each layer, the mean of 1 / ‖h‖² over tokens, where h is the input of the layer
    # (`LayerStatistics.inverse_power`)
    inverse_power: tuple[float, ...] = ()
    # for each layer, the mean square of the router's weight for each expert; empty for a layer
    # without a router (`LayerStatistics.routed_power`)
    routed_power: tuple[tuple[float, ...], ...] = ()
    # For each layer, KL(dense ‖ trial) of each trial of structure=search (`Search`), in nats per
    # token. In a trial, only the attention or only the MLP of this layer is pruned. Empty with
    # other structures.
    divergences: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def joined(cls, parts: Iterable["Scores"]) -> "Scores":
        """Join several `Scores`, each with some of the layers. Divergences are not joined."""
        parts = list(parts)
        return cls(
            tuple(layer for part in parts for layer in part.layers),
            tuple(power for part in parts for power in part.inverse_power),
            tuple(power for part in parts for power in part.routed_power),
        )


def write_scores(scores: Scores, path: Path) -> None:
    """Write scores to a safetensors file. All fields of `Scores` except `layers` are in float64."""
    tensors = {"inverse_power": torch.tensor(scores.inverse_power, dtype=torch.float64)}
    for i, layer in enumerate(scores.layers):
        for block, score in layer._asdict().items():
            tensors[f"{i}.{block}"] = score.contiguous()
    for name in BY_LAYER:
        for i, values in enumerate(getattr(scores, name)):
            tensors[f"{i}.{name}"] = torch.tensor(values, dtype=torch.float64)
    save_file(tensors, path)


def read_scores(path: Path) -> Scores:
    """Read the scores of all layers from a safetensors file."""
    tensors = load_file(path)
    power = tensors.pop("inverse_power").tolist()
    num_layers = 1 + max(int(name.split(".")[0]) for name in tensors)
    layers = []
    numbers: dict[str, list[tuple[float, ...]]] = {name: [] for name in BY_LAYER}
    for i in range(num_layers):
        layers.append(Pair(*(tensors[f"{i}.{block}"] for block in Pair._fields)))
        for name in BY_LAYER:
            if f"{i}.{name}" in tensors:
                numbers[name].append(tuple(tensors[f"{i}.{name}"].tolist()))
    return Scores(
        tuple(layers),
        tuple(power),
        routed_power=tuple(numbers["routed_power"]),
        divergences=tuple(numbers["divergences"]),
    )


SCORES: Kind[Scores] = Kind("scores", write_scores, read_scores)
