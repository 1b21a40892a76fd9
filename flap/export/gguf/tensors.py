"""Read the tensors of a checkpoint one at a time, with llama.cpp's names and order of rows."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gguf import get_tensor_name_map
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from flap.export.gguf import order
from flap.export.gguf.architecture import GGUFArchitecture
from flap.export.gguf.experts import TensorSource, sources
from flap.export.gguf.rope import head_dim
from flap.storage.tensor_headers import tensor_shapes


@dataclass(frozen=True)
class Shards:
    """The file and the shape of each tensor of a checkpoint."""

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, checkpoint: Path) -> "Shards":
        """Return the files and shapes of a checkpoint's tensors, from the headers of its safetensors files.

        Raises:
            ValueError: there is no safetensors file, one is damaged, or the index names a tensor that no file has.
        """
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for shard in sorted(checkpoint.glob("*.safetensors")):
            try:
                shard_shapes = tensor_shapes(shard)
            except ValueError as error:
                raise ValueError(f"{checkpoint}: {error}") from error
            files |= dict.fromkeys(shard_shapes, shard)
            shapes |= shard_shapes
        if not files:
            raise ValueError(f"{checkpoint}: no checkpoint here, *.safetensors are missing")
        for index in checkpoint.glob("*.safetensors.index.json"):
            if missing := json.loads(index.read_text())["weight_map"].keys() - files.keys():
                raise ValueError(f"{checkpoint}: {index.name} names {min(missing)}, which no shard holds")
        return cls(files, shapes)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        with safe_open(self.files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the GGUF: its name, its shape, and the function that reads it (float32)."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def entries(shards: Shards, row: GGUFArchitecture, config: PreTrainedConfig) -> list[TensorEntry]:
    """Return all tensors of the checkpoint, with the names that llama.cpp uses.

    Raises:
        ValueError: the architecture has no place for one of them, or the experts of a layer differ.
    """
    names = get_tensor_name_map(row.arch, config.num_hidden_layers)
    converted = []
    for source in sources(shards.shapes, shards.read):
        if ".act_fn." in source.name:
            continue  # these are keys
        target = names.get_name(source.name, try_suffixes=(".weight", ".bias"))
        if target is None or (target.endswith(".bias") and not row.takes_bias(target)):
            raise ValueError(f"gguf: llama.cpp's architecture {row.name} has no place for {source.name}")
        converted.append(_entry(target, source, row, config))
    if row.untied and not any(entry.name == "output.weight" for entry in converted):
        converted += [replace(entry, name="output.weight") for entry in converted if entry.name == "token_embd.weight"]
    return converted


def _entry(target: str, source: TensorSource, row: GGUFArchitecture, config: PreTrainedConfig) -> TensorEntry:
    """Return a tensor under its new name. One without rows or columns gets one unit of zeros.

    llama.cpp skips a block without units, also its output bias, which one unit of zeros keeps.
    """
    name, shape, dim = source.name, source.shape, head_dim(config)
    suffix = "" if target.endswith((".weight", ".bias")) else ".weight"
    if 0 in shape:
        nonempty = tuple(size or (dim if "self_attn" in name else 1) for size in shape)
        return TensorEntry(target, nonempty, lambda: torch.zeros(nonempty))
    turned = order.is_turned(name, shape, row)
    shape = shape[::-1] if turned else shape[1:] if order.is_vector(name) else shape

    def make() -> Tensor:
        return order.in_order(name, source.read().float(), row, dim, config.hidden_size)

    return TensorEntry(f"{target}{suffix}", shape, make)
