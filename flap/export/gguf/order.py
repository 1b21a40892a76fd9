"""The order of rows in llama.cpp, where it is not that of transformers.

Legend: R rows (the output channels of a Linear) · D head dimension.
"""

import re

import torch
from gguf import MODEL_ARCH
from torch import Tensor

from flap.export.gguf.architecture import GGUFArchitecture


def in_order(name: str, tensor: Tensor, row: GGUFArchitecture, head_dim: int, hidden_size: int) -> Tensor:
    """Return a tensor as llama.cpp has it. name: its name in the checkpoint."""
    if row.pairs and re.search(r"\.[qk]_proj\.", name):
        return interleave(tensor, head_dim)
    if row.offset and name.endswith("norm.weight"):
        return tensor + 1
    if "query_key_value" in name:
        return ungroup(tensor, head_dim, hidden_size)
    if is_turned(name, tuple(tensor.shape), row):
        return tensor.T.contiguous()
    return tensor.flatten() if is_vector(name) else tensor


def is_turned(name: str, shape: tuple[int, ...], row: GGUFArchitecture) -> bool:
    """Return whether a weight has its input channels first, as those of GPT-2 have."""
    return row.arch == MODEL_ARCH.GPT2 and ".c_" in name and len(shape) == 2


def is_vector(name: str) -> bool:
    """Return whether a matrix of one row is a vector in llama.cpp."""
    return name.endswith("shared_expert_gate.weight")


def interleave(tensor_R: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of q or k (weight or bias) from transformers' RoPE layout to that of llama.cpp's LLaMA.

    transformers rotates channel d with d + D/2, llama.cpp channel 2d with 2d + 1. The number of heads is computed from
    the number of rows, because it differs between layers.
    """
    heads = tensor_R.shape[0] // head_dim
    return tensor_R.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(tensor_R.shape)


def ungroup(tensor_R: Tensor, head_dim: int, hidden_size: int) -> Tensor:
    """Reorder the rows of q, k and v (weight or bias) of GPT-NeoX and Falcon, which have them group by group.

    llama.cpp has the rows of all queries first, then those of all keys, then those of all values. All queries have as
    many rows as the hidden size.
    """
    groups = (tensor_R.shape[0] - hidden_size) // (2 * head_dim)
    grouped = tensor_R.reshape(groups, -1, head_dim, *tensor_R.shape[1:])
    parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return torch.cat([part.reshape(-1, *tensor_R.shape[1:]) for part in parts])
