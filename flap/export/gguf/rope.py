"""RoPE in llama.cpp's keys: its base, its channels, and its scaling."""

from math import isclose, log

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flap.export.checkpoint import head_dim, ropes
from flap.export.checks import check_setting

# What llama.cpp computes of YaRN; it rounds the first and the last of the channels between which it interpolates.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale_all_dim": 0, "truncate": True}


def check_rope(config: PreTrainedConfig, allowed: tuple[str, ...]) -> None:
    """Check the type of RoPE; that of layers with a sliding window may have another base, and no scaling.

    Raises:
        ValueError: llama.cpp does not compute it.
    """
    full, sliding = ropes(config)
    check_setting("gguf", "rope_type", full["rope_type"], allowed)
    if sliding != full:
        check_setting("gguf", "rope_type of sliding attention", sliding["rope_type"], ("default",))
    if full["rope_type"] == "dynamic":
        check_setting("gguf", "alpha of rope_type=dynamic is given", bool(full.get("alpha")), (True,))
    if full["rope_type"] == "yarn":
        for name, value in YARN.items():
            check_setting("gguf", name, full.get(name) if full.get(name) is not None else value, (value,))
        usual = 0.1 * log(full["factor"]) + 1
        factor = full.get("attention_factor") or usual
        check_setting("gguf", "attention_factor", usual if isclose(factor, usual, rel_tol=1e-6) else factor, (usual,))


def add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the keys of RoPE. A model without it (GPT-2) has none."""
    (full, sliding), dim = ropes(config), head_dim(config)
    if "rope_theta" not in full:
        return
    # HunYuan: with an alpha, the base is theta · alpha^(D / (D - 2))
    writer.add_rope_freq_base(full["rope_theta"] * (full.get("alpha") or 1) ** (dim / (dim - 2)))
    writer.add_rope_dimension_count(int(dim * full.get("partial_rotary_factor", 1.0)))
    if sliding != full:
        writer.add_rope_freq_base_swa(sliding["rope_theta"])
    if full["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """Return the factors (`rope_freqs.weight`, D/2) by which llama.cpp divides RoPE's frequencies; None: no factors."""
    rope, dim = ropes(config)[0], head_dim(config)
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (unscaled / scaled.double()).float()
    return factors
