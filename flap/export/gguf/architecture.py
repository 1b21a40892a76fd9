"""Choose llama.cpp's architecture for a checkpoint, and write its hyperparameters.

LLaMA, Mistral and Qwen2 differ only in their biases. llama.cpp's `llama` supports all of these biases, but needs the
same width in all layers; `deci` is the same computation with a width for each layer. Qwen3 normalises q and k, Granite
has multipliers, SmolLM3 has layers without RoPE, Ernie 4.5 another order of channels: their architectures need one
width for all layers and have no biases. Seed-OSS has those of q, k and v, and none for what compensation adds.
"""

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ONE_WIDTH = {
    "qwen3": MODEL_ARCH.QWEN3,
    "granite": MODEL_ARCH.GRANITE,
    "smollm3": MODEL_ARCH.SMOLLM3,
    "ernie4_5": MODEL_ARCH.ERNIE4_5,
    "seed_oss": MODEL_ARCH.SEED_OSS,
}
MODEL_TYPES = ("llama", "mistral", "qwen2", *ONE_WIDTH)
TAKES_BIASES = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)
INPUT_BIASES = (MODEL_ARCH.SEED_OSS,)  # takes those of q, k and v, and no others
# RoPE rotates neighbouring channels where transformers rotates halves; that of Ernie does so in both.
ROTATES_PAIRS = (*TAKES_BIASES, MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3)
NO_ROPE_EVERY = 4  # layers without RoPE in llama.cpp's smollm3
ROPE_TYPES = ("default", "linear", "llama3")


def check_architecture(config: PreTrainedConfig, layers_alike: bool = True) -> None:
    """Check that llama.cpp has an architecture for a model. layers_alike: equal widths, and no biases added by pruning.

    Raises:
        ValueError: a setting is not supported; the message names it and the supported ones.
    """
    model_type = _model_type(config)
    _require("model_type", model_type, MODEL_TYPES)
    _require("hidden_act", config.hidden_act, ("silu",))
    ropes = ("default",) if model_type in ONE_WIDTH else ROPE_TYPES
    _require("rope_type", config.rope_parameters["rope_type"], ropes)
    _require("sliding attention", _has_sliding_attention(config), (False,))
    if model_type == "smollm3":
        rotated = [int((i + 1) % NO_ROPE_EVERY != 0) for i in range(config.num_hidden_layers)]
        _require("no_rope_layers", config.no_rope_layers, (rotated,))
    if model_type in ONE_WIDTH and not layers_alike:
        raise ValueError(_one_width(model_type))


def _require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"gguf: {name}={value}: llama.cpp runs this export with {', '.join(map(str, allowed))}")


def _one_width(model_type: str) -> str:
    pruned = "prune with structure=UL-UM and compensation=none"
    return f"gguf: llama.cpp's {model_type} has one width for all layers; {pruned}"


def choose_architecture(config: PreTrainedConfig, widths: list[dict[str, int]]) -> MODEL_ARCH:
    """Return llama.cpp's architecture for a model with these widths (`Shards.widths`).

    Raises:
        ValueError: the layers differ in width, and llama.cpp does not support that for this model.
    """
    uniform = all(layer == widths[0] for layer in widths)
    if _model_type(config) in ONE_WIDTH:
        if not uniform:
            raise ValueError(_one_width(_model_type(config)))
        return ONE_WIDTH[_model_type(config)]
    return MODEL_ARCH.LLAMA if uniform else MODEL_ARCH.DECI


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[dict[str, int]], arch: MODEL_ARCH
) -> None:
    """Write the hyperparameters that llama.cpp needs; for `deci`, widths are arrays with an entry for each layer."""
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(dim)
    writer.add_key_length(dim)  # the default, hidden size / heads, is wrong after pruning
    writer.add_value_length(dim)
    for name, add in (
        ("head_count", writer.add_head_count),
        ("head_count_kv", writer.add_head_count_kv),
        ("feed_forward_length", writer.add_feed_forward_length),
    ):
        add([layer[name] for layer in widths] if arch == MODEL_ARCH.DECI else widths[0][name])
    if arch == MODEL_ARCH.GRANITE:
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def head_dim(config: PreTrainedConfig) -> int:
    """Return the head dimension D of a model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """Return the factors (`rope_freqs.weight`, D/2) by which llama.cpp divides RoPE's frequencies; None: no scaling."""
    rope, dim = config.rope_parameters, head_dim(config)
    if rope["rope_type"] == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    unscaled = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (unscaled / scaled.double()).float()
    return factors


def takes_bias(arch: MODEL_ARCH, name: str) -> bool:
    """Return whether llama.cpp adds the bias of this name (its own) in an architecture."""
    return arch in TAKES_BIASES or (
        arch in INPUT_BIASES and name.endswith(("attn_q.bias", "attn_k.bias", "attn_v.bias"))
    )


def arch_name(arch: MODEL_ARCH) -> str:
    """Return llama.cpp's name of an architecture."""
    return str(MODEL_ARCH_NAMES[arch])


def _model_type(config: PreTrainedConfig) -> str:
    return str(config.model_type.removeprefix("flap_"))


def _has_sliding_attention(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None
