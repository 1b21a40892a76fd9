"""Statistics on disk: collected once for a whole grid, because metric, structure and ratio do not change them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.cache import Kind
from flap.calibration.collect import LayerStatistics
from flap.calibration.statistics import Statistics

# Part of every key: raise it when what is collected, or how, changes.
STATISTICS_VERSION = 2
BLOCKS = ("attention", "mlp")
CHANNELS = ("mean_I", "var_I", "msq_I")  # and num_tokens; covariances are not kept


def statistics_on_disk(device: torch.device) -> Kind[list[LayerStatistics]]:
    """How the statistics of all layers become one safetensors file, and come back on a device."""
    return Kind("statistics", write_statistics, partial(read_statistics, device=device))


def write_statistics(statistics: Sequence[LayerStatistics], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(statistics):
        tensors[f"{i}.inverse_power"] = torch.tensor(layer.inverse_power)
        for block in BLOCKS:
            for name in (*CHANNELS, "num_tokens"):
                tensors[f"{i}.{block}.{name}"] = torch.as_tensor(getattr(getattr(layer, block), name)).contiguous()
    save_file(tensors, path)


def read_statistics(path: Path, device: torch.device) -> list[LayerStatistics]:
    tensors = load_file(path, device=str(device))
    num_layers = 1 + max(int(name.split(".")[0]) for name in tensors)
    return [_layer(tensors, i) for i in range(num_layers)]


def _layer(tensors: dict[str, Tensor], i: int) -> LayerStatistics:
    attention, mlp = (_statistics(tensors, f"{i}.{block}.") for block in BLOCKS)
    return LayerStatistics(attention, mlp, tensors[f"{i}.inverse_power"].item())


def _statistics(tensors: dict[str, Tensor], prefix: str) -> Statistics:
    mean_I, var_I, msq_I = (tensors[prefix + name] for name in CHANNELS)
    num_tokens = tensors[f"{prefix}num_tokens"]
    return Statistics(mean_I, var_I, msq_I, int(num_tokens) if num_tokens.ndim == 0 else num_tokens)
