"""The tensors of a checkpoint with llama.cpp's names, shapes and order of rows, each read when it is written.

Published checkpoints have three matrices for each expert, others have gate and up of all experts in one tensor;
llama.cpp has gate, up and down, each of all experts of a layer.
Legend: E experts · I neurons of an expert · H hidden size · R rows (output channels of a Linear) · D head dimension.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from gguf import MODEL_ARCH, TensorNameMap, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig

from flap.export.checkpoint import Shards, head_dim
from flap.export.gguf.architecture import GGUFArchitecture

_ONE_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")
_GATE_UP = re.compile(r"(.+)\.\w+\.(experts\.gate_up_proj|input_linear\.weight)")
# Names of Granite-MoE in memory, which a checkpoint with our own class has, and others that llama.cpp's map knows.
_RENAMED = {".block_sparse_moe.experts.": ".mlp.experts.", ".router.weight": ".router.layer.weight"}


class LazyTensor(NamedTuple):
    """A tensor that is read when it is needed."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """Return the changed tensor under another name; its shape is found without data."""
        shape = change(torch.empty(self.shape, device="meta")).shape
        return LazyTensor(name, tuple(shape), lambda: change(self.read()))


def llama_cpp_tensors(shards: Shards, row: GGUFArchitecture, config: PreTrainedConfig) -> list[LazyTensor]:
    """Return all tensors of a checkpoint as llama.cpp has them (float32).

    Raises:
        ValueError: the architecture has no place for one of them, or the experts of a layer differ in width.
    """
    names = get_tensor_name_map(row.arch, config.num_hidden_layers)
    found = [one for one in _with_whole_experts(shards) if ".act_fn." not in one.name]  # those are keys
    converted = [_converted(one, names, row, config) for one in found]
    if row.untied and not any(one.name == "output.weight" for one in converted):
        converted += [one._replace(name="output.weight") for one in converted if one.name == "token_embd.weight"]
    return converted


def _with_whole_experts(shards: Shards) -> Iterator[LazyTensor]:
    """Yield the tensors of a checkpoint, with those of experts joined or divided."""
    experts: dict[str, dict[int, LazyTensor]] = {}
    for name, shape in shards.shapes.items():
        tensor = LazyTensor(name, shape, partial(shards.read, name))
        if match := _ONE_EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        elif match := _GATE_UP.fullmatch(name):
            for i, matrix in enumerate(("gate", "up")):
                yield tensor.changed(f"{match[1]}.mlp.experts.{matrix}_proj.weight", partial(_half, i))
        else:
            for old, new in _RENAMED.items():
                name = name.replace(old, new)
            yield tensor._replace(name=name)
    for name, by_number in experts.items():
        yield _stacked(name, [by_number[i] for i in sorted(by_number)])


def _half(which: int, tensor_E2IH: Tensor) -> Tensor:
    return tensor_E2IH.chunk(2, dim=1)[which].contiguous()


def _stacked(name: str, experts: list[LazyTensor]) -> LazyTensor:
    """Return the matrices of all experts of a layer as one."""
    [shape, *others] = {one.shape for one in experts}
    if others:
        raise ValueError(f"gguf: the experts of {name} differ in width; llama.cpp has one width for all")
    return LazyTensor(name, (len(experts), *shape), lambda: torch.stack([one.read() for one in experts]))


def _converted(tensor: LazyTensor, names: TensorNameMap, row: GGUFArchitecture, config: PreTrainedConfig) -> LazyTensor:
    """Return a tensor as llama.cpp has it. One without rows or columns gets one unit of zeros.

    llama.cpp skips a block without units, also its output bias, which one unit of zeros keeps.
    """
    target = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
    if target is None or (target.endswith(".bias") and not row.takes_bias(target)):
        raise ValueError(f"gguf: llama.cpp's architecture {row.name} has no place for {tensor.name}")
    if not target.endswith((".weight", ".bias")):
        target += ".weight"
    if 0 in tensor.shape:
        unit = head_dim(config) if "self_attn" in tensor.name else 1
        shape = tuple(size or unit for size in tensor.shape)
        return LazyTensor(target, shape, lambda: torch.zeros(shape))
    if "query_key_value" in tensor.name:  # whose rows cannot be told apart where heads are gone; that is refused later
        hidden = config.hidden_size
        return LazyTensor(target, tensor.shape, lambda: ungroup(tensor.read().float(), head_dim(config), hidden))
    return tensor.changed(target, partial(_in_order, tensor.name, row, config))


def _in_order(name: str, row: GGUFArchitecture, config: PreTrainedConfig, tensor: Tensor) -> Tensor:
    """Return a tensor in llama.cpp's order. name: its name in the checkpoint."""
    tensor = tensor.float()
    if row.pairs and re.search(r"\.[qk]_proj\.", name):
        return interleave(tensor, head_dim(config))
    if row.offset and name.endswith("norm.weight"):
        return tensor + 1
    if row.arch == MODEL_ARCH.GPT2 and ".c_" in name and tensor.dim() == 2:  # its weights have input channels first
        return tensor.T.contiguous()
    return tensor.flatten() if name.endswith("shared_expert_gate.weight") else tensor


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
