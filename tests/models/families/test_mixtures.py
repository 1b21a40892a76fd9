"""Tests of families with experts, linear attention or a state space."""

# ruff: noqa: RUF012 - FamilyContract annotates attributes of its subclasses as ClassVar

from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma4TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    MiniMaxM2Config,
    MixtralConfig,
    NemotronHConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from flap.method.allocation import ULMM
from tests.cases import VOCAB
from tests.models.families.contract import FamilyContract
from tests.models.families.tiny import (
    BIASES,
    GQA,
    MHA,
    MULTIPLIERS,
    SLIDING,
    SOME_LAYERS_SLIDE,
    TIED,
    TINY,
    UNTIED,
    both,
)


class TestMixtral(FamilyContract):
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    stays = ("mlp.gate.",)
    configs = both(MixtralConfig, TIED, SLIDING, **own)
    features = {"sliding_window": 16, "num_experts_per_tok": 1}


class TestMiniMaxM2(FamilyContract):
    own = TestMixtral.own | {
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
    }
    configs = both(MiniMaxM2Config, TIED, {}, **own)
    features = {"num_experts_per_tok": 1}
    uniform = ULMM(remove_heads=0, round_to=8)
    uniform_ratio = 0.3
    stays = ("mlp.gate.",)


class TestGraniteMoe(FamilyContract):
    own = TestMixtral.own | MULTIPLIERS
    configs = both(GraniteMoeConfig, TIED, {"attention_bias": True}, **own)
    features = dict.fromkeys(MULTIPLIERS, 1.0) | {"num_experts_per_tok": 1}
    stays = ("block_sparse_moe.router.",)


class TestOlmoe(FamilyContract):
    own = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    configs = both(OlmoeConfig, TIED, {"attention_bias": True, "clip_qkv": 0.5}, **own)
    features = {"num_experts_per_tok": 1, "clip_qkv": 5.0}
    uniform = ULMM(remove_heads=0, round_to=8)
    uniform_ratio = 0.3
    stays = ("mlp.gate.",)


class TestGptOss(FamilyContract):
    own = TestMixtral.own | {"head_dim": 8, "swiglu_limit": 1.0}
    configs = both(GptOssConfig, TIED, {}, **own, **SOME_LAYERS_SLIDE)
    features = {"sliding_window": 16, "num_experts_per_tok": 1, "swiglu_limit": 7.0}
    holds_biases = True
    rounding = 1e-5
    stays = ("mlp.router.",)


class TestQwen2Moe(FamilyContract):
    own = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 24,
    }
    sliding = {"use_sliding_window": True, **SOME_LAYERS_SLIDE}
    configs = both(
        Qwen2MoeConfig, {"norm_topk_prob": True, **TIED}, {"mlp_only_layers": [1]}, **own, **sliding
    )
    features = {"sliding_window": 16, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_expert.", "mlp.shared_expert_gate.")

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return (
            config.intermediate_size
            if layer in config.mlp_only_layers
            else config.moe_intermediate_size
        )


class TestQwen3Moe(FamilyContract):
    own = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sliding = {
        **SLIDING,
        "use_sliding_window": True,
        "attention_bias": True,
        "mlp_only_layers": [1],
    }
    configs = both(Qwen3MoeConfig, {"norm_topk_prob": True, **TIED}, sliding, **own)
    features = {"sliding_window": 16, "num_experts_per_tok": 1}
    stays = ("mlp.gate.",)
    num_neurons = TestQwen2Moe.num_neurons


class TestGlm4Moe(FamilyContract):
    own = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.5,
        "head_dim": 8,
    }
    normed = {"use_qk_norm": True, "first_k_dense_replace": 0, **TIED}
    configs = both(
        Glm4MoeConfig, normed, {"attention_bias": True, "first_k_dense_replace": 1}, **own
    )
    features = {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_experts.")
    stock = False

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return (
            config.moe_intermediate_size
            if layer >= config.first_k_dense_replace
            else config.intermediate_size
        )


class TestDeepseekV3(FamilyContract):
    own = TestGlm4Moe.own | {
        "num_key_value_heads": 8,
        "intermediate_size": 56,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    del own["head_dim"]
    configs = {
        "queries": DeepseekV3Config(
            **TINY | own, q_lora_rank=None, first_k_dense_replace=0, attention_bias=True
        ),
        "query-latents": DeepseekV3Config(
            **TINY | own, q_lora_rank=16, first_k_dense_replace=1, **TIED
        ),
    }
    features = {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1}
    stays = ("mlp.gate.", "mlp.shared_experts.", "self_attn.q_", "self_attn.kv_")
    stock = False
    num_neurons = TestGlm4Moe.num_neurons

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        return 1, 1


class TestLlama4(FamilyContract):
    own = {
        "num_local_experts": 4,
        "intermediate_size": 32,
        "intermediate_size_mlp": 56,
        "head_dim": 8,
        "attention_chunk_size": 8,
        "no_rope_layers": [1, 0, 1],
        "floor_scale": 4,
    }
    biased = {"num_experts_per_tok": 1, "attention_bias": True, "moe_layers": [0, 2]}
    configs = both(Llama4TextConfig, {"num_experts_per_tok": 2, **TIED}, biased, **own)
    features = {"attention_chunk_size": 16, "attn_scale": 1.0}
    stays = ("feed_forward.router.", "feed_forward.shared_expert.")
    stock = False

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        return (
            config.intermediate_size if layer in config.moe_layers else config.intermediate_size_mlp
        )


TYPES = [
    "sliding_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
]


class TestGemma4(FamilyContract):
    own = {
        "head_dim": 8,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    mixture = {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    }
    configs = {
        "mixture": Gemma4TextConfig(**MHA | own | mixture, **UNTIED),
        "E2B": Gemma4TextConfig(
            **GQA
            | own
            | {"hidden_size_per_layer_input": 16, "num_hidden_layers": 5, "layer_types": TYPES},
            # With a small epsilon, norms over few, small values would increase rounding errors.
            rms_norm_eps=0.5,
            num_kv_shared_layers=2,
            use_double_wide_mlp=True,
            vocab_size_per_layer_input=VOCAB,
        ),
        "one head size": Gemma4TextConfig(**GQA | own | {"global_head_dim": 8}),
        "dense": Gemma4TextConfig(**GQA | own, attention_k_eq_v=True, num_global_key_value_heads=2),
    }
    features = {"sliding_window": 16, "final_logit_softcapping": 30.0, "top_k_experts": 1}
    stays = ("router.", "mlp.gate_proj.", "mlp.up_proj.", "mlp.down_proj.")
    stock = False

    def whole(self, config: PreTrainedConfig, layer: int) -> tuple[str, ...]:
        if config.enable_moe_block:
            return self.stays
        shared = ("q_proj", "k_proj", "v_proj") if self.shares(config, layer) else ()
        return (*shared, "per_layer_") if config.hidden_size_per_layer_input else shared

    def shares(self, config: PreTrainedConfig, layer: int) -> bool:
        return config.num_kv_shared_layers > 0 and config.kv_sharing_modes[layer] is not None

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        wide = config.use_double_wide_mlp and config.kv_sharing_modes[layer] == "reuse"
        return (
            config.moe_intermediate_size
            if config.enable_moe_block
            else config.intermediate_size * (1 + wide)
        )

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        if self.shares(config, layer):
            return 1, 1
        groups = config.per_layer_config[layer].num_key_value_heads
        return groups, config.num_attention_heads // groups


class TestQwen35(FamilyContract):
    own = {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    configs = both(Qwen3_5TextConfig, TIED, {"attention_bias": True}, **own)
    stock = False
    stays = ("linear_attn.in_proj", "linear_attn.conv1d.")

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        whole = config.layer_types[layer] == "linear_attention"
        return (1, 1) if whole else FamilyContract.heads(self, config, layer)


class TestQwen3Next(FamilyContract):
    own = TestQwen35.own | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 24,
    }
    configs = both(Qwen3NextConfig, TIED, {"attention_bias": True, "mlp_only_layers": [1]}, **own)
    features = {"num_experts_per_tok": 1}
    stock = False
    stays = (*TestQwen35.stays, *TestQwen2Moe.stays)
    num_neurons = TestQwen2Moe.num_neurons
    heads = TestQwen35.heads


class TestNemotronH(FamilyContract):
    own = {
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 24,
        "routed_scaling_factor": 1.5,
        "n_groups": 1,
        "chunk_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
    }
    configs = {
        "latent": NemotronHConfig(
            **MHA | own,
            layers_block_type=["moe", "full_attention", "moe", "linear_attention"],
            moe_latent_size=16,
        ),
        "mixture": NemotronHConfig(
            **GQA | own,
            layers_block_type=["moe", "full_attention", "moe", "linear_attention", "mlp"],
            mlp_bias=True,
        ),
    }
    features = {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1}
    uniform = ULMM(remove_heads=0, round_to=8)
    uniform_ratio = 0.3
    stays = ("mixer.gate.", "mixer.shared_experts.", "mixer.in_proj", "mixer.conv1d", "mixer.fc")

    def whole(self, config: PreTrainedConfig, layer: int) -> tuple[str, ...]:
        return self.stays[: None if config.moe_latent_size else -1]

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        sizes = {"moe": config.moe_intermediate_size, "mlp": config.intermediate_size}
        return sizes.get(config.layers_block_type[layer], 0)

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        kind = config.layers_block_type[layer]
        return (
            FamilyContract.heads(self, config, layer)
            if kind == "full_attention"
            else (kind[0] == "l", 1)
        )


class TestFalconH1(FamilyContract):
    own = {
        "head_dim": 8,
        "mamba_chunk_size": 16,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "key_multiplier": 0.5,
        "attention_in_multiplier": 0.7,
        "attention_out_multiplier": 0.6,
        "lm_head_multiplier": 0.4,
    }
    configs = both(FalconH1Config, TIED, BIASES, **own)
    features = {"key_multiplier": 1.0, "attention_out_multiplier": 1.0, "lm_head_multiplier": 1.0}
    holds_biases = True
    stays = ("mamba.",)
