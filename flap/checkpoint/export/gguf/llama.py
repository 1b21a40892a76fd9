"""Convert LLaMA, Mistral and Qwen 2 models for llama.cpp.

These families differ only in which Linear modules have biases. llama.cpp's architecture `llama`
applies every bias that is in the file, but needs layers with equal numbers of heads and neurons.
llama.cpp's architecture `deci` does the same computation with separate numbers for each layer.

Legend: R: rows (output channels of a Linear), D: channels of a head.
"""

import re
from math import isclose, log

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flap.checkpoint.export.checkpoint import check_setting, head_dim, ropes

ROPES = ("default", "linear", "yarn", "llama3")
# The values of YaRN's parameters for which llama.cpp gives the same results as transformers. YaRN's
# scaling of the frequencies changes gradually between two channels. llama.cpp always rounds the
# indices of these two channels to whole numbers, as transformers does if `truncate` is true.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale_all_dim": 0, "truncate": True}


def check_llama(config: PreTrainedConfig) -> None:
    """Check that llama.cpp gives the same results as transformers for a model with this config.

    Raises:
        ValueError: llama.cpp does not support a setting. The message names the supported values.
    """
    check_setting("gguf", "hidden_act", config.hidden_act, ("silu",))
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    has_window = getattr(config, "sliding_window", None) is not None
    slides = has_window and "sliding_attention" in kinds
    check_setting("gguf", "sliding attention", slides, (False,))

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


def convert_llama(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Convert a tensor to the order of rows that llama.cpp's architecture `llama` needs."""
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


def add_llama_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the hyperparameters of the RoPE.

    The factors of Llama 3's RoPE are not written here, because they are a tensor (`rope_factors`).
    """
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
