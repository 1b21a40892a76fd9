"""The table of model families.

For each `model_type` of a config, it contains the names of the modules and config keys that flap
needs to prune a model of this type.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """The names of a family's modules and config keys.

    The defaults are the names of LLaMA. The output projection is the last Linear of an attention or
    MLP, and the input projections are the Linears before it. Output projections are given as paths
    in a decoder layer. A layer may lack the attention or the MLP. Input projections are given by
    their names in the module that also contains their output projection. If one Linear combines
    query, key and value projections, the rows of each KV head are next to the rows of its query
    heads. If `stacked` is true, all query rows come first instead, then all key rows, and then all
    value rows. If one Linear combines gate and up projections, all gate rows come before the up
    rows.
    """

    # path of the decoder in the base model; empty if the base model itself is the decoder
    decoder: str = ""
    # path of the layers in the decoder
    layers: str = "layers"
    # whether a layer returns a tuple that begins with the hidden states
    tuples: bool = False

    # path of the output projection of the attention
    attention: str = "self_attn.o_proj"
    attention_inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    # names of the RMS norms that each normalise all outputs of an input projection, in the order of
    # `attention_inputs`
    attention_norms: tuple[str, ...] = ()
    # names of other parameters of the attention, such as gpt-oss's `sinks`, that have the same
    # number of values for each head
    attention_vectors: tuple[str, ...] = ()
    # path of the output projection in layers whose attention cannot be divided into heads; empty if
    # the family has no such layers
    whole_attention: str = ""
    stacked: bool = False
    # whether the attention class takes its width from the hidden size and does not read `head_dim`
    square_attention: bool = False

    # path of the output projection of the MLP
    mlp: str = "mlp.down_proj"
    mlp_inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    # path of the experts in a decoder layer; empty if the family has no experts
    experts: str = ""
    # path of the router in a decoder layer; empty if flap cannot remove its rows with the experts
    router: str = ""

    # config key with the number of experts
    num_experts: str = "num_experts"
    # config key with the number of experts that each token is routed to
    chosen_experts: str = "num_experts_per_tok"
    # config key with the number of KV heads; a model with multi-head attention may lack this key
    kv_heads: str = "num_key_value_heads"
    # config key with the number of neurons of an MLP
    neurons: str = "intermediate_size"
    # config key with the number of neurons of one expert; empty if it is the same key as `neurons`
    expert_neurons: str = ""
    # config keys that must be false or 0, because flap does not support the features they turn on
    without: tuple[str, ...] = ()
    # paths of modules that are not pruned, although their classes read their sizes from config keys
    # that pruning changes
    unpruned: tuple[str, ...] = ()

    @property
    def modules(self) -> dict[str, Any]:
        """The value of `flap_modules` in config.json, which `modeling_flap.py` reads."""
        names = dict(zip(self.attention_norms, self.attention_inputs, strict=False))
        return {
            "decoder": self.decoder,
            "layers": self.layers,
            "attention": self.attention,
            "attention_norms": names,
            "square_attention": self.square_attention,
            "mlp": self.mlp,
            "experts": self.experts,
            "unpruned": list(self.unpruned),
        }


PLAIN = ("up_proj",)  # input projections of an MLP without a gate
MIXTURE = Family(experts="mlp.experts", router="mlp.gate")
SMALL_EXPERTS = replace(MIXTURE, expert_neurons="moe_intermediate_size")

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "ministral3",
            "qwen2",
            "qwen3",
            "qwen3_vl_text",
            "smollm3",
            "granite",
            "gemma",
            "gemma2",
            "gemma3_text",
            "cohere2",
            "ernie4_5",
            "exaone4",
            "hunyuan_v1_dense",
            "seed_oss",
        ),
        Family(),
    ),
    "qwen2_5_vl_text": Family(square_attention=True),
    "stablelm": Family(square_attention=True, without=("qk_layernorm",)),
    "olmo2": Family(attention_norms=("q_norm", "k_norm")),
    "olmo3": Family(attention_norms=("q_norm", "k_norm")),
    "glm4": Family(mlp_inputs=("gate_up_proj",)),
    "apertus": Family(mlp_inputs=PLAIN),
    "arcee": Family(mlp_inputs=PLAIN),
    "nemotron": Family(mlp_inputs=PLAIN),
    "phi": Family(
        attention="self_attn.dense",
        mlp="mlp.fc2",
        mlp_inputs=("fc1",),
        without=("qk_layernorm",),
    ),
    "phi3": Family(attention_inputs=("qkv_proj",), stacked=True, mlp_inputs=("gate_up_proj",)),
    "starcoder2": Family(mlp="mlp.c_proj", mlp_inputs=("c_fc",)),
    "opt": Family(
        decoder="decoder",
        attention="self_attn.out_proj",
        square_attention=True,
        mlp="fc2",
        mlp_inputs=("fc1",),
        neurons="ffn_dim",
    ),
    "gpt_neox": Family(
        attention="attention.dense",
        attention_inputs=("query_key_value",),
        square_attention=True,
        mlp="mlp.dense_4h_to_h",
        mlp_inputs=("dense_h_to_4h",),
    ),
    "falcon": Family(
        layers="h",
        tuples=True,
        attention="self_attention.dense",
        attention_inputs=("query_key_value",),
        square_attention=True,
        kv_heads="num_kv_heads",
        mlp="mlp.dense_4h_to_h",
        mlp_inputs=("dense_h_to_4h",),
        neurons="ffn_hidden_size",
        without=("alibi",),
    ),
    "gpt2": Family(
        layers="h",
        attention="attn.c_proj",
        attention_inputs=("c_attn",),
        stacked=True,
        square_attention=True,
        mlp="mlp.c_proj",
        mlp_inputs=("c_fc",),
        neurons="n_inner",
    ),
    "mixtral": replace(MIXTURE, num_experts="num_local_experts"),
    "granitemoe": Family(
        experts="block_sparse_moe.experts",
        router="block_sparse_moe.router",
        num_experts="num_local_experts",
    ),
    "llama4_text": Family(
        mlp="feed_forward.down_proj",
        neurons="intermediate_size_mlp",
        experts="feed_forward.experts",
        router="feed_forward.router",
        num_experts="num_local_experts",
        expert_neurons="intermediate_size",
        unpruned=("feed_forward.shared_expert",),
    ),
    "gpt_oss": Family(
        experts="mlp.experts",
        router="mlp.router",
        num_experts="num_local_experts",
        attention_vectors=("sinks",),
    ),
    "olmoe": replace(MIXTURE, attention_norms=("q_norm", "k_norm")),
    "minimax_m2": replace(
        MIXTURE,
        num_experts="num_local_experts",
        attention_norms=("q_norm", "k_norm"),
    ),
    "qwen2_moe": SMALL_EXPERTS,
    "qwen3_moe": replace(SMALL_EXPERTS, num_experts="num_local_experts"),
    "gemma4_text": Family(
        experts="experts",
        expert_neurons="moe_intermediate_size",
        chosen_experts="top_k_experts",
    ),
    "glm4_moe": replace(
        SMALL_EXPERTS,
        num_experts="n_routed_experts",
        unpruned=("mlp.shared_experts",),
    ),
    "deepseek_v3": replace(
        SMALL_EXPERTS,
        num_experts="n_routed_experts",
        whole_attention="self_attn.o_proj",
        unpruned=("mlp.shared_experts",),
    ),
    "qwen3_next": replace(SMALL_EXPERTS, whole_attention="linear_attn.out_proj"),
    "qwen3_5_text": Family(whole_attention="linear_attn.out_proj"),
    "nemotron_h": Family(
        attention="mixer.o_proj",
        whole_attention="mixer.out_proj",
        mlp="mixer.down_proj",
        mlp_inputs=PLAIN,
        experts="mixer.experts",
        router="mixer.gate",
        num_experts="n_routed_experts",
        expert_neurons="moe_intermediate_size",
    ),
    "falcon_h1": Family(tuples=True, mlp="feed_forward.down_proj", unpruned=("mamba",)),
}

# A dict from the `model_type` of each vision-language architecture to the path of the language
# model in the base model. The family of the language model is in FAMILIES.
TOWERS = {
    **dict.fromkeys(
        ("gemma3", "gemma4", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl"), "language_model"
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), "text_model"),
}


def family_of(config: Any) -> Family:
    """Return the family of a dense or pruned model, given its config.

    A vision-language model has the family of its language model, except that `decoder` begins with
    the path of the language model.

    Raises:
        KeyError: no family has this architecture.
    """
    model_type = config.model_type.removeprefix("flap_")
    if model_type not in TOWERS:
        return FAMILIES[model_type]
    family = family_of(config.get_text_config())
    return replace(family, decoder=f"{TOWERS[model_type]}.{family.decoder}".rstrip("."))
