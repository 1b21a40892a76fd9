"""Which of llama.cpp's architectures computes what a checkpoint computes, and the numbers that it needs.

LLaMA, Mistral and Qwen2 differ in their biases alone, all of which llama.cpp's `llama` takes; it has one width for all
layers. `deci` is the same computation with widths by layer. Qwen3 norms q and k: `qwen3`, one width and no biases.
"""

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROTATES_PAIRS = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)  # RoPE turns neighbouring channels, not halves; takes biases
ROPE_TYPES = ("default", "linear", "llama3")


def check_architecture(config: PreTrainedConfig, layers_alike: bool = True) -> None:
    """`layers_alike`: they have one width and no biases that pruning added.

    Raises:
        ValueError: GGUF cannot hold it; says what of it, and what can be held.
    """
    model_type = _model_type(config)
    _require("model_type", model_type, MODEL_TYPES)
    _require("hidden_act", config.hidden_act, ("silu",))
    ropes = ("default",) if model_type == "qwen3" else ROPE_TYPES
    _require("rope_type", config.rope_parameters["rope_type"], ropes)
    _require("sliding attention", _slides(config), (False,))
    if model_type == "qwen3" and not layers_alike:
        raise ValueError(QWEN3)


def _require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"gguf: {name}={value}: llama.cpp runs this export with {', '.join(map(str, allowed))}")


QWEN3 = "gguf: llama.cpp's qwen3 has one width for all layers; prune with structure=UL-UM and compensation=none"


def choose_architecture(config: PreTrainedConfig, widths: list[dict[str, int]]) -> MODEL_ARCH:
    """Raises: ValueError: the layers differ in width and no architecture of llama.cpp allows that for this model."""
    uniform = all(one == widths[0] for one in widths)
    if _model_type(config) == "qwen3":
        if not uniform:
            raise ValueError(QWEN3)
        return MODEL_ARCH.QWEN3
    return MODEL_ARCH.LLAMA if uniform else MODEL_ARCH.DECI


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[dict[str, int]], arch: MODEL_ARCH
) -> None:
    """All that llama.cpp must know besides the tensors; widths as arrays with one entry a layer where they differ."""
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(dim)
    writer.add_key_length(dim)  # else it would be taken as hidden size / heads
    writer.add_value_length(dim)
    for name, add in (
        ("head_count", writer.add_head_count),
        ("head_count_kv", writer.add_head_count_kv),
        ("feed_forward_length", writer.add_feed_forward_length),
    ):
        add([one[name] for one in widths] if arch == MODEL_ARCH.DECI else widths[0][name])


def head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """What llama.cpp divides the frequencies by (`rope_freqs.weight`, D/2), taken from transformers' own; or None."""
    rope, dim = config.rope_parameters, head_dim(config)
    if rope["rope_type"] == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
    factors: Tensor = (plain / scaled.double()).float()
    return factors


def arch_name(arch: MODEL_ARCH) -> str:
    return str(MODEL_ARCH_NAMES[arch])


def _model_type(config: PreTrainedConfig) -> str:
    return str(config.model_type.removeprefix("flap_"))


def _slides(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None
