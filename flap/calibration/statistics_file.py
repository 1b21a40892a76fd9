"""The file of the statistics: all runs of a grid share it, as metric, structure and ratio do not change them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.calibration.statistics import LayerStatistics, Statistics
from flap.models import Pair
from flap.storage import Kind

# Part of every cache key. Raise it when other statistics are collected, or in another way.
STATISTICS_VERSION = 4
CHANNELS = ("num_tokens", "mean_I", "deviation_I")  # the stored fields of Statistics; not covariances


def write_statistics(statistics: Sequence[LayerStatistics], path: Path) -> None:
    """Write the statistics of all layers to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(statistics):
        tensors[f"{i}.inverse_power"] = torch.tensor(layer.inverse_power)
        tensors[f"{i}.routed_power"] = torch.tensor(layer.routed_power)
        for block, channels in layer.blocks._asdict().items():
            for name in CHANNELS:
                tensors[f"{i}.{block}.{name}"] = torch.as_tensor(getattr(channels, name)).contiguous()
    save_file(tensors, path)


def read_statistics(path: Path) -> list[LayerStatistics]:
    """Read the statistics of all layers from a file."""
    tensors = load_file(path)
    num_layers = 1 + max(int(name.split(".")[0]) for name in tensors)
    return [_layer(tensors, i) for i in range(num_layers)]


STATISTICS: Kind[list[LayerStatistics]] = Kind("statistics", write_statistics, read_statistics)


def _layer(tensors: dict[str, Tensor], i: int) -> LayerStatistics:
    blocks = Pair(*(_statistics(tensors, f"{i}.{block}.") for block in Pair._fields))
    return LayerStatistics(blocks, tensors[f"{i}.inverse_power"].item(), tuple(tensors[f"{i}.routed_power"].tolist()))


def _statistics(tensors: dict[str, Tensor], prefix: str) -> Statistics:
    num_tokens, mean_I, deviation_I = (tensors[prefix + name] for name in CHANNELS)
    return Statistics(int(num_tokens) if num_tokens.ndim == 0 else num_tokens, mean_I, deviation_I)
