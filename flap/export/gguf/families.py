"""llama.cpp's architecture for each family: a row of one table.

LLaMA, Mistral and Qwen2 differ only in their biases. llama.cpp's `llama` supports all of these biases, but needs the
same width in all layers; `deci` is the same computation with a width for each layer. The other architectures need one
width for all layers, and take the biases that their row names.
"""

from collections.abc import Callable

from gguf import MODEL_ARCH
from transformers import PreTrainedConfig

from flap.export.checks import check_setting
from flap.export.gguf.architecture import NO_CHANGES, QKV, GGUFArchitecture, GGUFChanges, Values

# llama.cpp tells the largest models by their number of layers, and computes something else in these.
GEMMA2_27B, GEMMA3_27B, EXAONE4_32B = 46, 62, 64


def _rotates_three_of_four(config: PreTrainedConfig) -> tuple[list[int]]:
    return ([int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)],)


def _slides_if_largest(config: PreTrainedConfig) -> tuple[int | None]:
    return (config.sliding_window if config.num_hidden_layers == EXAONE4_32B else None,)


def _is_given(name: str) -> Callable[[PreTrainedConfig], tuple[object]]:
    """Return what allows any value of a key but None."""
    return lambda config: ("a number" if getattr(config, name) is None else getattr(config, name),)


NORMS, ATTENTION = ("norm.bias", "norm_2.bias"), (*QKV, "attn_output.bias")
ALL = (*ATTENTION, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", *NORMS)
LLAMA3 = ("default", "linear", "yarn", "llama3")

# llama.cpp has GELU with tanh, and looks it up in a table of float16; the exact one differs by less than 0.0005.
TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
GELU = (*TANH, "gelu")
TIED: Values = {"tie_word_embeddings": (True,)}
SILU: Values = {"hidden_act": ("silu",)}
RELU2: Values = {"hidden_act": ("relu2",)}
GEMMA: Values = {"hidden_activation": TANH, "use_bidirectional_attention": (False, None)}
SOFTCAPS = {f"{part}_logit_softcapping": f"{part}_logit_softcapping" for part in ("attn", "final")}
GEMMA2: Values = {**GEMMA, **TIED, **{name: _is_given(name) for name in SOFTCAPS}}
SMOLLM3: Values = {**SILU, "no_rope_layers": _rotates_three_of_four}
EXAONE4: Values = {**SILU, "sliding_window": _slides_if_largest}
GRANITE = {
    "embedding_scale": "embedding_multiplier", "attention_scale": "attention_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
}  # fmt: skip
FALCON: Values = {"activation": GELU, "alibi": (False,), "parallel_attn": (True,), "bias": (False,)}
GPT2: Values = {
    "activation_function": GELU, "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
}  # fmt: skip
STABLELM: Values = {**SILU, "qk_layernorm": (False,)}
PHI: Values = {"hidden_act": GELU, "qk_layernorm": (False,)}
STARCODER2: Values = {"hidden_act": GELU, "use_bias": (True,)}
NEOX: Values = {"hidden_act": GELU, "attention_bias": (True,)}
OLMOE: Values = {
    **SILU, "clip_qkv": (None,), "norm_topk_prob": (False,),
    "num_key_value_heads": lambda config: (config.num_attention_heads,),  # its norms of queries and keys are as wide
}  # fmt: skip
QWEN2_MOE: Values = {**SILU, "mlp_only_layers": ([], None), "decoder_sparse_step": (1,), "norm_topk_prob": (False,)}
QWEN3_MOE: Values = {**QWEN2_MOE, "norm_topk_prob": (True,)}

_LLAMA = GGUFArchitecture(MODEL_ARCH.LLAMA, SILU, ALL, LLAMA3, by_layer=MODEL_ARCH.DECI, pairs=True)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": GGUFArchitecture(MODEL_ARCH.QWEN3, SILU),
    "smollm3": GGUFArchitecture(MODEL_ARCH.SMOLLM3, SMOLLM3, pairs=True),
    "granite": GGUFArchitecture(MODEL_ARCH.GRANITE, SILU, ALL, LLAMA3, pairs=True, keys=GRANITE),
    "gemma": GGUFArchitecture(MODEL_ARCH.GEMMA, {"hidden_act": TANH, **TIED}, offset=True),
    "gemma2": GGUFArchitecture(
        MODEL_ARCH.GEMMA2, GEMMA2, offset=True, slides=True, largest=GEMMA2_27B, keys=SOFTCAPS,
    ),
    "gemma3_text": GGUFArchitecture(
        MODEL_ARCH.GEMMA3, GEMMA, offset=True, slides=True, largest=GEMMA3_27B, keys=SOFTCAPS,
    ),
    "cohere2": GGUFArchitecture(
        MODEL_ARCH.COHERE2, {**SILU, **TIED}, square=True, slides=True, keys={"logit_scale": "logit_scale"},
    ),
    "ernie4_5": GGUFArchitecture(MODEL_ARCH.ERNIE4_5, SILU),
    "exaone4": GGUFArchitecture(MODEL_ARCH.EXAONE4, EXAONE4, QKV, LLAMA3, square=True, slides=True),
    "hunyuan_v1_dense": GGUFArchitecture(
        MODEL_ARCH.HUNYUAN_DENSE, SILU, ropes=("default", "linear", "yarn", "dynamic"),
    ),
    "seed_oss": GGUFArchitecture(MODEL_ARCH.SEED_OSS, SILU),
    "stablelm": GGUFArchitecture(MODEL_ARCH.STABLELM, STABLELM, (*QKV, *NORMS), square=True, untied=True),
    "olmo2": GGUFArchitecture(MODEL_ARCH.OLMO2, SILU, square=True, untied=True),
    "olmo3": GGUFArchitecture(MODEL_ARCH.OLMO2, SILU, square=True, untied=True, slides=True),
    "glm4": GGUFArchitecture(MODEL_ARCH.GLM4, SILU),
    "apertus": GGUFArchitecture(MODEL_ARCH.APERTUS, {"hidden_act": ("xielu",)}, ATTENTION, LLAMA3, untied=True),
    "arcee": GGUFArchitecture(MODEL_ARCH.ARCEE, RELU2, QKV, LLAMA3, pairs=True),
    "nemotron": GGUFArchitecture(MODEL_ARCH.NEMOTRON, RELU2, ALL, offset=True, square=True, untied=True),
    "phi": GGUFArchitecture(MODEL_ARCH.PHI2, PHI, (*ALL, "output.bias"), square=True, untied=True),
    "phi3": GGUFArchitecture(MODEL_ARCH.PHI3, SILU, square=True),
    "starcoder2": GGUFArchitecture(MODEL_ARCH.STARCODER2, STARCODER2, ALL, square=True),
    "gpt_neox": GGUFArchitecture(
        MODEL_ARCH.GPTNEOX, NEOX, ALL, square=True, untied=True, keys={"parallel_residual": "use_parallel_residual"},
    ),
    "falcon": GGUFArchitecture(MODEL_ARCH.FALCON, FALCON, NORMS, square=True),
    "gpt2": GGUFArchitecture(MODEL_ARCH.GPT2, GPT2, ALL, square=True),
    "mixtral": GGUFArchitecture(MODEL_ARCH.LLAMA, SILU, ATTENTION, LLAMA3, pairs=True),
    "granitemoe": GGUFArchitecture(
        MODEL_ARCH.GRANITE_MOE, SILU, ATTENTION, LLAMA3, pairs=True, keys=GRANITE,
    ),
    "olmoe": GGUFArchitecture(MODEL_ARCH.OLMOE, OLMOE, square=True, untied=True),
    "qwen2_moe": GGUFArchitecture(MODEL_ARCH.QWEN2MOE, QWEN2_MOE, square=True, untied=True),
    "qwen3_moe": GGUFArchitecture(MODEL_ARCH.QWEN3MOE, QWEN3_MOE),
}  # fmt: skip
MODEL_TYPES = tuple(ARCHITECTURES)


def check_architecture(config: PreTrainedConfig, changes: GGUFChanges = NO_CHANGES) -> GGUFArchitecture:
    """Check that llama.cpp has an architecture for a model, and for what pruning may do to it; return its row.

    Raises:
        ValueError: a setting is not supported; the message names it and the supported ones.
    """
    model_type = config.model_type.removeprefix("flap_")
    check_setting("gguf", "model_type", model_type, MODEL_TYPES)
    ARCHITECTURES[model_type].check(config, changes)
    return ARCHITECTURES[model_type]
