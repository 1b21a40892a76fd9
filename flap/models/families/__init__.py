"""THE table of the model families: the names of their modules, by the `model_type` of their config."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from flap.models.adapter import ModelAdapter
from flap.models.families.family import Family
from flap.models.families.mixture import MixtureAdapter
from flap.models.families.usual import UsualAdapter

__all__ = ["FAMILIES", "TOWERS", "Family", "adapt", "auto_class", "find_family", "sees_images"]

PLAIN = ("up_proj",)  # an MLP without a gate

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral3": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "qwen2_5_vl_text": Family(),
    "qwen3_vl_text": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "cohere2": Family(),
    "ernie4_5": Family(),
    "exaone4": Family(),
    "hunyuan_v1_dense": Family(),
    "seed_oss": Family(),
    "stablelm": Family(without=("qk_layernorm",)),
    "olmo2": Family(attention_norms=("q_norm", "k_norm")),
    "olmo3": Family(attention_norms=("q_norm", "k_norm")),
    "glm4": Family(mlp_inputs=("gate_up_proj",)),
    "apertus": Family(mlp_inputs=PLAIN),
    "arcee": Family(mlp_inputs=PLAIN),
    "nemotron": Family(mlp_inputs=PLAIN),
    "phi": Family(attention="self_attn.dense", mlp="mlp.fc2", mlp_inputs=("fc1",), without=("qk_layernorm",)),
    "phi3": Family(attention_inputs=("qkv_proj",), stacked=True, mlp_inputs=("gate_up_proj",)),
    "starcoder2": Family(mlp="mlp.c_proj", mlp_inputs=("c_fc",)),
    "opt": Family(decoder="decoder", attention="self_attn.out_proj", mlp="fc2", mlp_inputs=("fc1",), neurons="ffn_dim"),
    "gpt_neox": Family(
        attention="attention.dense", attention_inputs=("query_key_value",),
        mlp="mlp.dense_4h_to_h", mlp_inputs=("dense_h_to_4h",),
    ),
    "falcon": Family(
        layers="h", tuples=True,
        attention="self_attention.dense", attention_inputs=("query_key_value",), kv_heads="num_kv_heads",
        mlp="mlp.dense_4h_to_h", mlp_inputs=("dense_h_to_4h",), neurons="ffn_hidden_size", without=("alibi",),
    ),
    "gpt2": Family(
        layers="h", attention="attn.c_proj", attention_inputs=("c_attn",), stacked=True,
        mlp="mlp.c_proj", mlp_inputs=("c_fc",), neurons="n_inner",
    ),
    "mixtral": Family(experts="mlp.experts", router="mlp.gate", num_experts="num_local_experts"),
    "granitemoe": Family(
        experts="block_sparse_moe.experts", router="block_sparse_moe.router", num_experts="num_local_experts",
    ),
    "llama4_text": Family(
        mlp="feed_forward.down_proj", neurons="intermediate_size_mlp", experts="feed_forward.experts",
        router="feed_forward.router", num_experts="num_local_experts", expert_neurons="intermediate_size",
    ),
    "gpt_oss": Family(
        experts="mlp.experts", router="mlp.router", num_experts="num_local_experts", attention_vectors=("sinks",),
    ),
    "olmoe": Family(experts="mlp.experts", router="mlp.gate", attention_norms=("q_norm", "k_norm")),
    "qwen2_moe": Family(experts="mlp.experts", router="mlp.gate", expert_neurons="moe_intermediate_size"),
    "qwen3_moe": Family(
        experts="mlp.experts", router="mlp.gate", num_experts="num_local_experts",
        expert_neurons="moe_intermediate_size",
    ),
    "gemma4_text": Family(
        experts="experts", expert_neurons="moe_intermediate_size", chosen_experts="top_k_experts",
        without=("hidden_size_per_layer_input", "num_kv_shared_layers"),
    ),
    "glm4_moe": Family(
        experts="mlp.experts", router="mlp.gate", num_experts="n_routed_experts",
        expert_neurons="moe_intermediate_size",
    ),
    "deepseek_v3": Family(
        experts="mlp.experts", router="mlp.gate", num_experts="n_routed_experts",
        expert_neurons="moe_intermediate_size", whole_attention="self_attn.o_proj",
    ),
    "qwen3_next": Family(
        experts="mlp.experts", router="mlp.gate", expert_neurons="moe_intermediate_size",
        whole_attention="linear_attn.out_proj",
    ),
    "qwen3_5_text": Family(whole_attention="linear_attn.out_proj"),
    "falcon_h1": Family(tuples=True, mlp="feed_forward.down_proj"),
}  # fmt: skip

# The vision-language models: the path of the language model in the base model. Its family is that of its own config.
TOWERS = {
    "gemma3": "language_model",
    "llava": "language_model",
    "mistral3": "language_model",
    "qwen2_5_vl": "language_model",
    "qwen3_vl": "language_model",
    "idefics3": "text_model",
    "smolvlm": "text_model",
}


def find_family(config: PreTrainedConfig) -> Family:
    """Return the family of an architecture by its `model_type`; no weight needs to be loaded.

    That of a vision-language model is the family of its language model, which is all of it that is pruned.

    Raises:
        ValueError: no family has this architecture; the message names the nearest, lists all, and says how to add one.
    """
    model_type = config.model_type.removeprefix("flap_")  # a pruned model can be pruned again
    if model_type in TOWERS:
        family = find_family(config.get_text_config())
        return replace(family, decoder=f"{TOWERS[model_type]}.{family.decoder}".rstrip("."))
    if model_type in FAMILIES:
        return _checked(FAMILIES[model_type], config)
    if hasattr(config, "vision_config"):
        raise ValueError(
            f"model.path: vision-language model '{config.model_type}' is not supported; supported are "
            f"{', '.join(sorted(TOWERS))}; expected one of them, or a checkpoint of its language model alone "
            f"(model_type {config.get_text_config().model_type})"
        )
    nearest = "".join(f"; the nearest is {name}" for name in get_close_matches(model_type, FAMILIES, 1))
    raise ValueError(
        f"model.path: architecture '{config.model_type}' is not supported{nearest}; "
        f"supported are {', '.join(sorted(FAMILIES))}; to add one, write its row in flap/models/families/__init__.py "
        "(CONTRIBUTING.md, 'A new family')"
    )


def _checked(family: Family, config: PreTrainedConfig) -> Family:
    for key in family.without:
        if getattr(config, key):
            value, expected = str(getattr(config, key)).lower(), "false" if getattr(config, key) is True else "0"
            unsupported = f"{config.model_type} with {key}={value} is not supported"
            raise ValueError(f"model.path: {unsupported}; expected {key}={expected}")
    return family


def sees_images(config: PreTrainedConfig) -> bool:
    """Return whether a model of this config is a vision-language model."""
    return config.model_type.removeprefix("flap_") in TOWERS


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class of transformers that loads a model of this config as a whole, with its head."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def adapt(model: PreTrainedModel, whole_experts: bool = False) -> ModelAdapter:
    """Return the adapter of a loaded model. whole_experts: the units of experts are whole experts.

    Raises:
        ValueError: the architecture is not supported, the model has no language model head, or it has no experts that
            can leave whole.
    """
    family = find_family(model.config)
    head = "ForConditionalGeneration" if sees_images(model.config) else "ForCausalLM"
    if not type(model).__name__.endswith((head, "LMHeadModel")):
        raise ValueError(f"model: {type(model).__name__} has no language model head; expected a …{head} class")
    if whole_experts:
        _check_whole_experts(family, model.config.get_text_config())
    return (MixtureAdapter if family.experts else UsualAdapter)(model, family, whole_experts)


def _check_whole_experts(family: Family, config: PreTrainedConfig) -> None:
    refused = f"structure.experts=true: expected false for {config.model_type}"
    if not family.router:
        allowed = ", ".join(name for name, one in FAMILIES.items() if one.router)
        raise ValueError(f"{refused}; or one of {allowed}")
    groups = getattr(config, "n_group", None) or 1
    if groups > 1:
        raise ValueError(f"{refused} with n_group={groups}, whose router chooses among groups of as many experts each")
