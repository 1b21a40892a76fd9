"""The tensors of a checkpoint under the names and in the order of rows that llama.cpp wants, read one at a time.

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

from flap.checkpoint.gguf.architecture import ROTATES_PAIRS


@dataclass(frozen=True)
class Shards:
    """Where each tensor of a checkpoint lies, and its shape."""

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, checkpoint: Path) -> "Shards":
        """Read the headers.

        Raises:
            ValueError: the directory holds no safetensors, or its index names a tensor that no shard holds.
        """
        files, shapes = {}, {}
        for shard in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(shard, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    files[name], shapes[name] = shard, tuple(tensors.get_slice(name).get_shape())
        if not files:
            raise ValueError(f"{checkpoint}: no checkpoint here, *.safetensors are missing")
        for index in checkpoint.glob("*.safetensors.index.json"):
            if missing := json.loads(index.read_text())["weight_map"].keys() - files.keys():
                raise ValueError(f"{checkpoint}: {index.name} names {min(missing)}, which no shard holds")
        return cls(files, shapes)

    def read(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    def widths(self, head_dim: int, num_layers: int) -> list[dict[str, int]]:
        """Query heads, KV heads and neurons of each layer; one that lost all of a kind gets one back, as zeros."""

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
    """One tensor of the GGUF: its name, its shape, and how to make it (float32)."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def entries(shards: Shards, arch: MODEL_ARCH, head_dim: int, num_layers: int) -> list[Entry]:
    """All tensors of the checkpoint, by the names of `arch`.

    Raises:
        ValueError: the architecture has no place for one of them.
    """
    names = get_tensor_name_map(arch, num_layers)
    made = []
    for name, shape in shards.shapes.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None or (target.endswith(".bias") and arch not in ROTATES_PAIRS):
            raise ValueError(f"gguf: llama.cpp's architecture {arch.name.lower()} has no place for {name}")
        rotated = arch in ROTATES_PAIRS and any(f".{which}_proj." in name for which in "qk")
        empty = head_dim if "self_attn" in name else 1
        made.append(Entry(target, _filled(shape, empty), _maker(shards, name, empty, head_dim if rotated else None)))
    return made


def _filled(shape: tuple[int, ...], unit: int) -> tuple[int, ...]:
    return tuple(size or unit for size in shape)


def _maker(shards: Shards, name: str, empty: int, rotated: int | None) -> Callable[[], Tensor]:
    def make() -> Tensor:
        tensor = shards.read(name).float()
        if 0 in tensor.shape:
            # llama.cpp skips a block without units and with it the block's output bias: one unit of zeros keeps that
            return torch.zeros(_filled(tuple(tensor.shape), empty))
        return tensor if rotated is None else interleave(tensor, rotated)

    return make


def interleave(tensor_R: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of q or k (weight or bias) from rotating halves to rotating neighbours.

    transformers rotates channel d with d + D/2, llama.cpp's LLaMA channel 2d with 2d + 1. How many heads there are
    follows from the rows, so that every layer is reordered by its own count.
    """
    heads = tensor_R.shape[0] // head_dim
    return tensor_R.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(tensor_R.shape)
