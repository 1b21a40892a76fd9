"""The tensors of experts as llama.cpp has them: gate, up and down, each of all experts of a layer.

Published checkpoints have three matrices for each expert; others have gate and up of all experts in one tensor.
Legend: E experts · I neurons of an expert · H hidden size.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

_ONE = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")
_GATE_UP = re.compile(r"(.+)\.\w+\.(experts\.gate_up_proj|input_linear\.weight)")
# Names of Granite-MoE in memory, which a checkpoint with our own class has, and others that llama.cpp's map knows.
_RENAMED = {".block_sparse_moe.experts.": ".mlp.experts.", ".router.weight": ".router.layer.weight"}


class TensorSource(NamedTuple):
    """A tensor of the checkpoint, or what several of them or a part of one make."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def sources(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> list[TensorSource]:
    """Return the tensors of a checkpoint, with those of experts joined or divided.

    Raises:
        ValueError: the experts of a layer differ in width.
    """
    found: list[TensorSource] = []
    joined: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        if match := _ONE.fullmatch(name):
            joined.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = name
        elif match := _GATE_UP.fullmatch(name):
            found += _halves(f"{match[1]}.mlp.experts", shape, partial(read, name))
        else:
            found.append(TensorSource(_renamed(name), shape, partial(read, name)))
    return found + [_stacked(name, experts, shapes, read) for name, experts in joined.items()]


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _halves(experts: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> list[TensorSource]:
    """Return gate and up [E, I, H] of a tensor that has both [E, 2 I, H]."""
    count, rows, hidden = shape
    return [
        TensorSource(f"{experts}.{matrix}_proj.weight", (count, rows // 2, hidden), partial(_half, read, i))
        for i, matrix in enumerate(("gate", "up"))
    ]


def _half(read: Callable[[], Tensor], which: int) -> Tensor:
    return read().chunk(2, dim=1)[which].contiguous()


def _stacked(
    name: str, experts: dict[int, str], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> TensorSource:
    """Return the matrices of all experts of a layer as one, in the order of their numbers."""
    [shape, *others] = {shapes[one] for one in experts.values()}
    if others:
        raise ValueError(f"gguf: the experts of {name} differ in width; llama.cpp has one width for all")
    return TensorSource(name, (len(experts), *shape), lambda: torch.stack([read(experts[i]) for i in sorted(experts)]))
