"""The tensors of a checkpoint with llama.cpp's names, shapes and order of rows, each read when it is written.

Legend: R rows (output channels of a Linear) · D head dimension.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from gguf import MODEL_ARCH, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig

from flap.checkpoint.export.checkpoint import Shards, head_dim


class LazyTensor(NamedTuple):
    """A tensor that is read when it is needed."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def llama_cpp_tensors(shards: Shards, config: PreTrainedConfig) -> list[LazyTensor]:
    """Return all tensors of a checkpoint as llama.cpp has them (float32).

    Raises:
        ValueError: its architecture has no place for one of them.
    """
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = []
    for name, shape in shards.shapes.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"gguf: llama.cpp's architecture llama has no place for {name}")
        tensors.append(_converted(name, shape, target, shards, head_dim(config)))
    return tensors


def _converted(name: str, shape: tuple[int, ...], target: str, shards: Shards, head_dim: int) -> LazyTensor:
    """Return a tensor as llama.cpp has it."""
    if re.search(r"\.[qk]_proj\.", name):
        return LazyTensor(target, shape, lambda: interleave(shards.read(name).float(), head_dim))
    return LazyTensor(target, shape, lambda: shards.read(name).float())


def interleave(tensor_R: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of q or k (weight or bias) from transformers' RoPE layout to that of llama.cpp's LLaMA.

    transformers rotates channel d with d + D/2, llama.cpp channel 2d with 2d + 1. The number of heads is computed from
    the number of rows, because it differs between layers.
    """
    heads = tensor_R.shape[0] // head_dim
    return tensor_R.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(tensor_R.shape)
