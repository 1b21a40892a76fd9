"""RoPE in llama.cpp's keys: its base, its channels, and its scaling."""

from math import isclose, log

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flap.checkpoint.export.checkpoint import head_dim, ropes
from flap.checkpoint.export.checks import check_setting

ROPES = ("default", "linear", "yarn", "llama3")
# What llama.cpp computes of YaRN; it rounds the first and the last of the channels between which it interpolates.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale_all_dim": 0, "truncate": True}


def check_rope(config: PreTrainedConfig) -> None:
    """Check the type of RoPE.

    Raises:
        ValueError: llama.cpp does not compute it.
    """
    rope, _ = ropes(config)
    check_setting("gguf", "rope_type", rope["rope_type"], ROPES)
    if rope["rope_type"] == "yarn":
        for name, value in YARN.items():
            check_setting("gguf", name, rope.get(name) if rope.get(name) is not None else value, (value,))
        usual = 0.1 * log(rope["factor"]) + 1
        factor = rope.get("attention_factor") or usual
        check_setting("gguf", "attention_factor", usual if isclose(factor, usual, rel_tol=1e-6) else factor, (usual,))


def add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the keys of RoPE."""
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
    rope, dim = ropes(config)[0], head_dim(config)
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (unscaled / scaled.double()).float()
    return factors
