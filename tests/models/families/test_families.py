"""The families, each a few lines: its tiny configs, and what makes it differ from the others."""

# ruff: noqa: RUF012 - the contract says that these are class variables

from transformers import (
    ApertusConfig,
    ArceeConfig,
    Cohere2Config,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
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


class TestMinistral3(FamilyContract):
    configs = {
        "mha": Ministral3Config(**MHA, head_dim=8, **TIED),
        "gqa": Ministral3Config(**GQA, head_dim=8, **SLIDING),
    }
    features = {"sliding_window": 16}


class TestGemma(FamilyContract):
    configs = {
        "mha": GemmaConfig(**MHA, head_dim=8),
        "gqa": GemmaConfig(**GQA, head_dim=8, attention_bias=True, **UNTIED),
    }


class TestCohere2(FamilyContract):
    own = {"logit_scale": 0.5}
    configs = {
        "mha": Cohere2Config(**MHA, **own, **SOME_LAYERS_SLIDE),
        "gqa": Cohere2Config(**GQA, **own, **SOME_LAYERS_SLIDE, **UNTIED, attention_bias=True),
    }
    features = {"logit_scale": 1.0, "sliding_window": 16}
    uniform, uniform_ratio = ULMM(remove_heads=0), 0.4


class TestErnie45(FamilyContract):
    configs = {
        "mha": Ernie4_5Config(**MHA, head_dim=8),
        "gqa": Ernie4_5Config(**GQA, head_dim=8, use_bias=True, **UNTIED),
    }
    holds_biases = True


class TestExaone4(FamilyContract):
    configs = {
        "mha": Exaone4Config(**MHA, sliding_window=None, layer_types=["full_attention"] * 3, **TIED),
        "gqa": Exaone4Config(**GQA, **SOME_LAYERS_SLIDE),
    }
    features = {"sliding_window": 16}


class TestHunYuan(FamilyContract):
    configs = {
        "mha": HunYuanDenseV1Config(**MHA, head_dim=8, **TIED),
        "gqa": HunYuanDenseV1Config(**GQA, head_dim=8, attention_bias=True),
    }


class TestSeedOss(FamilyContract):
    configs = {
        "mha": SeedOssConfig(**MHA, head_dim=8, **TIED),
        "gqa": SeedOssConfig(**GQA, head_dim=8, attention_out_bias=True, mlp_bias=True),
    }
    holds_biases = True


class TestStableLm(FamilyContract):
    configs = {
        "mha": StableLmConfig(**MHA, use_parallel_residual=True, **TIED),
        "gqa": StableLmConfig(**GQA, use_qkv_bias=True),
    }
    uniform, uniform_ratio = ULMM(remove_heads=0), 0.4


class TestOlmo3(FamilyContract):
    configs = {
        "mha": Olmo3Config(**MHA, **SOME_LAYERS_SLIDE),
        "gqa": Olmo3Config(**GQA, **SOME_LAYERS_SLIDE, attention_bias=True, **TIED),
    }
    features = {"sliding_window": 16}


class TestGlm4(FamilyContract):
    configs = {
        "mha": Glm4Config(**MHA, head_dim=8, attention_bias=False),
        "gqa": Glm4Config(**GQA, head_dim=8, **TIED),
    }


class TestApertus(FamilyContract):
    configs = {"mha": ApertusConfig(**MHA, **TIED), "gqa": ApertusConfig(**GQA, attention_bias=True)}


class TestArcee(FamilyContract):
    configs = {"mha": ArceeConfig(**MHA, **TIED), "gqa": ArceeConfig(**GQA, attention_bias=True, mlp_bias=True)}
    holds_biases = True


class TestNemotron(FamilyContract):
    configs = {"mha": NemotronConfig(**MHA, **TIED), "gqa": NemotronConfig(**GQA, attention_bias=True, mlp_bias=True)}
    holds_biases = True


class TestPhi(FamilyContract):
    configs = {"mha": PhiConfig(**MHA, **TIED), "gqa": PhiConfig(**GQA)}
    holds_biases = True


class TestFalcon(FamilyContract):
    own = TINY | {"ffn_hidden_size": 56, "multi_query": False}
    configs = {
        "mha": FalconConfig(**own, parallel_attn=False, **UNTIED),
        "gqa": FalconConfig(**own, new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=2),
        "one-kv-head": FalconConfig(**own | {"multi_query": True}, bias=True),
    }
    neurons = "ffn_hidden_size"
    uniform, uniform_ratio, holds_biases = ULMM(remove_heads=0), 0.4, True

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        groups = 1 if config.multi_query else config.num_kv_heads
        return groups, config.num_attention_heads // groups


class TestGPT2(FamilyContract):
    own = {"n_embd": 32, "n_layer": 3, "n_head": 8, "n_positions": 128, "n_inner": 56}
    own |= {key: TINY[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    configs = {
        "tied": GPT2Config(**own, scale_attn_by_inverse_layer_idx=True),
        "untied": GPT2Config(**own, scale_attn_by_inverse_layer_idx=True, **UNTIED),
    }
    features = {"scale_attn_by_inverse_layer_idx": False}
    neurons = "n_inner"
    uniform, uniform_ratio, holds_biases = ULMM(remove_heads=0), 0.4, True


class TestMixtral(FamilyContract):
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    stays = ("mlp.gate.",)
    configs = {"mha": MixtralConfig(**MHA | own | TIED), "gqa": MixtralConfig(**GQA | own | SLIDING)}
    features = {"sliding_window": 16, "num_experts_per_tok": 1}


class TestGraniteMoe(FamilyContract):
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    own |= {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0}
    configs = {
        "mha": GraniteMoeConfig(**MHA | own | TIED),
        "gqa": GraniteMoeConfig(**GQA | own, attention_bias=True),
    }
    features = dict.fromkeys(TestGranite.own, 1.0) | {"num_experts_per_tok": 1}
    stays = ("block_sparse_moe.router.",)


class TestOlmoe(FamilyContract):
    own = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    configs = {
        "mha": OlmoeConfig(**MHA | own | TIED),
        "gqa": OlmoeConfig(**GQA | own, attention_bias=True, clip_qkv=0.5),
    }
    features = {"num_experts_per_tok": 1, "clip_qkv": 5.0}
    uniform, uniform_ratio = ULMM(remove_heads=0, round_to=8), 0.3
    stays = ("mlp.gate.",)


class TestGptOss(FamilyContract):
    own = {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "swiglu_limit": 1.0,
    }
    configs = {
        "mha": GptOssConfig(**MHA | own | TIED | SOME_LAYERS_SLIDE),
        "gqa": GptOssConfig(**GQA | own | SOME_LAYERS_SLIDE),
    }
    features = {"sliding_window": 16, "num_experts_per_tok": 1, "swiglu_limit": 7.0}
    holds_biases, rounding = True, 1e-5
    stays = ("mlp.router.",)


class TestQwen2Moe(FamilyContract):
    own = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 24,
    }
    configs = {
        "mha": Qwen2MoeConfig(**MHA, **own, norm_topk_prob=True, use_sliding_window=True, **SOME_LAYERS_SLIDE, **TIED),
        "gqa": Qwen2MoeConfig(**GQA, **own, use_sliding_window=True, **SOME_LAYERS_SLIDE, mlp_only_layers=[1]),
    }
    features = {"sliding_window": 16, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_expert.", "mlp.shared_expert_gate.")

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return config.intermediate_size if layer in config.mlp_only_layers else config.moe_intermediate_size


class TestQwen3Moe(FamilyContract):
    own = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    configs = {
        "mha": Qwen3MoeConfig(**MHA, **own, norm_topk_prob=True, **TIED),
        "gqa": Qwen3MoeConfig(
            **GQA, **own, **SLIDING, use_sliding_window=True, attention_bias=True, mlp_only_layers=[1]
        ),
    }
    features = {"sliding_window": 16, "num_experts_per_tok": 1}
    stays = ("mlp.gate.",)

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return config.intermediate_size if layer in config.mlp_only_layers else config.moe_intermediate_size


class TestGlm4Moe(FamilyContract):
    own = {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1,
        "routed_scaling_factor": 1.5, "head_dim": 8,
    }  # fmt: skip
    configs = {
        "mha": Glm4MoeConfig(**MHA, **own, use_qk_norm=True, first_k_dense_replace=0, **TIED),
        "gqa": Glm4MoeConfig(**GQA, **own, attention_bias=True, first_k_dense_replace=1),
    }
    features = {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_experts.")
    stock = False

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return config.moe_intermediate_size if layer >= config.first_k_dense_replace else config.intermediate_size


class TestDeepseekV3(FamilyContract):
    own = TestGlm4Moe.own | {
        "num_key_value_heads": 8, "intermediate_size": 56, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 8,
    }  # fmt: skip
    del own["head_dim"]
    configs = {
        "query-latents": DeepseekV3Config(**TINY | own, q_lora_rank=16, first_k_dense_replace=1, **TIED),
        "queries": DeepseekV3Config(**TINY | own, q_lora_rank=None, first_k_dense_replace=0, attention_bias=True),
    }
    features = {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_experts.", "self_attn.q_", "self_attn.kv_")
    stock = False
    num_neurons = TestGlm4Moe.num_neurons

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        return 1, 1


class TestQwen35(FamilyContract):
    own = {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 4, "linear_value_head_dim": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    }  # fmt: skip
    configs = {
        "mha": Qwen3_5TextConfig(**MHA, **own, **TIED),
        "gqa": Qwen3_5TextConfig(**GQA, **own, attention_bias=True),
    }
    stock = False
    stays = ("linear_attn.in_proj", "linear_attn.conv1d.")

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        whole = config.layer_types[layer] == "linear_attention"
        return (1, 1) if whole else FamilyContract.heads(self, config, layer)


class TestQwen3Next(FamilyContract):
    own = TestQwen35.own | {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 24,
    }  # fmt: skip
    configs = {
        "mha": Qwen3NextConfig(**MHA, **own, **TIED),
        "gqa": Qwen3NextConfig(**GQA, **own, attention_bias=True, mlp_only_layers=[1]),
    }
    features = {"num_experts_per_tok": 1}
    stock = False
    stays = (*TestQwen35.stays, *TestQwen2Moe.stays)
    num_neurons, heads = TestQwen2Moe.num_neurons, TestQwen35.heads


class TestFalconH1(FamilyContract):
    own = {
        "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_n_groups": 1, "key_multiplier": 0.5, "attention_in_multiplier": 0.7, "attention_out_multiplier": 0.6,
        "lm_head_multiplier": 0.4,
    }  # fmt: skip
    configs = {
        "mha": FalconH1Config(**MHA, **own, **TIED),
        "gqa": FalconH1Config(**GQA, **own, attention_bias=True, mlp_bias=True),
    }
    features = {"key_multiplier": 1.0, "attention_out_multiplier": 1.0, "lm_head_multiplier": 1.0}
    holds_biases = True
    stays = ("mamba.",)
