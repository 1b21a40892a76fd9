"""Read the tensors of a checkpoint one at a time, with llama.cpp's names and order of rows.

Legend: R rows (the output channels of a Linear) · I its input channels · D head dimension.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import MODEL_ARCH, get_tensor_name_map
from safetensors import safe_open
from torch import Tensor

from flap.export.gguf.architecture import ROTATES_PAIRS, takes_bias
from flap.storage.headers import tensor_shapes


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

    def widths(self, head_dim: int, num_layers: int) -> list[dict[str, int]]:
        """Return the numbers of query heads, KV heads and neurons of each layer, by GGUF key.

        Where all were removed, the number is 1: the export adds one unit of zeros.
        """

        def rows(layer: int, linear: str) -> int:
            return self.shapes[f"model.layers.{layer}.{linear}.weight"][0]

        return [
            {
                "head_count": max(rows(i, "self_attn.q_proj") // head_dim, 1),
                "head_count_kv": max(rows(i, "self_attn.k_proj") // head_dim, 1),
                "feed_forward_length": max(rows(i, "mlp.gate_proj"), 1),
            }
            for i in range(num_layers)
        ]


@dataclass(frozen=True)
class Entry:
    """A tensor of the GGUF: its name, its shape, and the function that reads it (float32)."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def entries(shards: Shards, arch: MODEL_ARCH, head_dim: int, num_layers: int) -> list[Entry]:
    """Return all tensors of the checkpoint, with the names that llama.cpp uses for `arch`.

    Raises:
        ValueError: the architecture has no place for one of them.
    """
    names = get_tensor_name_map(arch, num_layers)
    converted = []
    for name, shape in shards.shapes.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None or (target.endswith(".bias") and not takes_bias(arch, target)):
            raise ValueError(f"gguf: llama.cpp's architecture {arch.name.lower()} has no place for {name}")
        interleaved = arch in ROTATES_PAIRS and any(f".{which}_proj." in name for which in "qk")
        unit_size = head_dim if "self_attn" in name else 1
        read = _reader(shards, name, unit_size, head_dim if interleaved else None)
        converted.append(Entry(target, _nonempty(shape, unit_size), read))
    return converted


def _nonempty(shape: tuple[int, ...], unit_size: int) -> tuple[int, ...]:
    """Return a shape with each zero replaced by the size of one unit."""
    return tuple(size or unit_size for size in shape)


def _reader(shards: Shards, name: str, unit_size: int, head_dim: int | None) -> Callable[[], Tensor]:
    """Return a function that reads a tensor. head_dim: interleave its rows for this head dimension; None: do not."""

    def read() -> Tensor:
        tensor = shards.read(name).float()
        if 0 in tensor.shape:
            # llama.cpp skips a block without units, also its output bias; one unit of zeros keeps the bias
            return torch.zeros(_nonempty(tuple(tensor.shape), unit_size))
        return tensor if head_dim is None else interleave(tensor, head_dim)

    return read


def interleave(tensor_R: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of q or k (weight or bias) from transformers' RoPE layout to that of llama.cpp's LLaMA.

    transformers rotates channel d with d + D/2, llama.cpp channel 2d with 2d + 1. The number of heads is computed from
    the number of rows, because it differs between layers.
    """
    heads = tensor_R.shape[0] // head_dim
    return tensor_R.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(tensor_R.shape)
