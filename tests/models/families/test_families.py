"""The families, each a few lines: its tiny configs, and what makes it differ from the others."""

# ruff: noqa: RUF012 - the contract says that these are class variables

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from flap.allocation import ULMM
from tests.cases import VOCAB
from tests.models.families.contract import FamilyContract

# Heads of 4 channels, as hidden_size / heads, where the config does not say otherwise.
TINY = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MHA = TINY | {"num_key_value_heads": 8, "intermediate_size": 56}
GQA = TINY | {"num_key_value_heads": 4, "intermediate_size": 56}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SLIDING = {"sliding_window": 8}
SOME_LAYERS_SLIDE = SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


class TestLlama(FamilyContract):
    configs = {"mha": LlamaConfig(**MHA, **TIED), "gqa": LlamaConfig(**GQA, attention_bias=True, mlp_bias=True)}
    holds_biases = True


class TestMistral(FamilyContract):
    configs = {"mha": MistralConfig(**MHA, sliding_window=None, **TIED), "gqa": MistralConfig(**GQA, **SLIDING)}
    features = {"sliding_window": 16}


class TestQwen2(FamilyContract):
    configs = {
        "mha": Qwen2Config(**MHA, **TIED),
        "gqa": Qwen2Config(**GQA, use_sliding_window=True, **SOME_LAYERS_SLIDE),
    }
    features = {"sliding_window": 16}


class TestQwen3(FamilyContract):
    configs = {
        "mha": Qwen3Config(**MHA, head_dim=8, **TIED),
        "gqa": Qwen3Config(**GQA, head_dim=8, attention_bias=True, use_sliding_window=True, **SOME_LAYERS_SLIDE),
    }
    features = {"sliding_window": 16}


class TestSmolLM3(FamilyContract):
    configs = {
        "mha": SmolLM3Config(**MHA, no_rope_layers=[1, 0, 1], **TIED),
        "gqa": SmolLM3Config(
            **GQA, **SLIDING, **UNTIED, use_sliding_window=True, no_rope_layers=[0, 1, 0], attention_bias=True,
            mlp_bias=True,
        ),
    }  # fmt: skip
    features = {"no_rope_layers": [1, 1, 1], "sliding_window": 16}
    holds_biases = True


class TestGranite(FamilyContract):
    own = {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0}
    configs = {
        "mha": GraniteConfig(**MHA, **own, **TIED),
        "gqa": GraniteConfig(**GQA, **own, attention_bias=True, mlp_bias=True),
    }
    features = dict.fromkeys(own, 1.0)
    holds_biases = True


class TestGemma2(FamilyContract):
    own = {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    configs = {
        "mha": Gemma2Config(**MHA, **own, **SOME_LAYERS_SLIDE),
        "gqa": Gemma2Config(**GQA, **own, **SLIDING, **UNTIED, attention_bias=True),
    }
    features = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0, "sliding_window": 16}


class TestGemma3(FamilyContract):
    own = {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
    configs = {
        "mha": Gemma3TextConfig(**MHA, **own, **SOME_LAYERS_SLIDE),
        "gqa": Gemma3TextConfig(**GQA, **own, **SOME_LAYERS_SLIDE, **UNTIED, attention_bias=True),
    }
    features = {"final_logit_softcapping": 30.0, "sliding_window": 16}


class TestOlmo2(FamilyContract):
    configs = {"mha": Olmo2Config(**MHA), "gqa": Olmo2Config(**GQA, attention_bias=True, **TIED)}


class TestPhi3(FamilyContract):
    configs = {
        "mha": Phi3Config(**MHA, sliding_window=None),
        "gqa": Phi3Config(**GQA, **SLIDING, **TIED, partial_rotary_factor=0.5),
    }
    features = {"sliding_window": 16}


class TestStarcoder2(FamilyContract):
    configs = {
        "mha": Starcoder2Config(**MHA, sliding_window=None, use_bias=False, **UNTIED),
        "gqa": Starcoder2Config(**GQA, **SLIDING),
    }
    features = {"sliding_window": 16}
    holds_biases = True


class TestOPT(FamilyContract):
    own = TINY | {"ffn_dim": 56}
    configs = {
        "norm-before": OPTConfig(**own),
        "norm-after": OPTConfig(**own, do_layer_norm_before=False, word_embed_proj_dim=16),
        "no-biases": OPTConfig(**own, enable_bias=False, activation_function="gelu", **UNTIED),
    }
    neurons = "ffn_dim"
    uniform, uniform_ratio, holds_biases = ULMM(remove_heads=0), 0.4, True


class TestGPTNeoX(FamilyContract):
    own = TINY | {"intermediate_size": 56}
    configs = {
        "parallel": GPTNeoXConfig(**own),
        "serial": GPTNeoXConfig(**own, use_parallel_residual=False, **TIED, rotary_pct=0.5),
        "no-attention-biases": GPTNeoXConfig(**own, attention_bias=False),
    }
    uniform, uniform_ratio, holds_biases = ULMM(remove_heads=0), 0.4, True


class TestMixtral(FamilyContract):
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    configs = {"mha": MixtralConfig(**MHA | own | TIED), "gqa": MixtralConfig(**GQA | own | SLIDING)}
    features = {"sliding_window": 16, "num_experts_per_tok": 1}


class TestQwen3Moe(FamilyContract):
    own = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    configs = {
        "mha": Qwen3MoeConfig(**MHA, **own, norm_topk_prob=True, **TIED),
        "gqa": Qwen3MoeConfig(
            **GQA, **own, **SLIDING, use_sliding_window=True, attention_bias=True, mlp_only_layers=[1]
        ),
    }
    features = {"sliding_window": 16, "num_experts_per_tok": 1}

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return config.intermediate_size if layer in config.mlp_only_layers else config.moe_intermediate_size
