"""Tests of families with fused modules, MLPs without a gate, or modules named unlike LLaMA's."""

# ruff: noqa: RUF012 - FamilyContract annotates attributes of its subclasses as ClassVar

from transformers import (
    ApertusConfig,
    ArceeConfig,
    FalconConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    NemotronConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Starcoder2Config,
)

from flap.method.allocation import ULMM
from tests.models.families.contract import FamilyContract
from tests.models.families.tiny import BIASES, SLIDING, TIED, TINY, UNTIED, both


class TestPhi3(FamilyContract):
    configs = both(
        Phi3Config, {"sliding_window": None}, {**SLIDING, **TIED, "partial_rotary_factor": 0.5}
    )
    features = {"sliding_window": 16}


class TestStarcoder2(FamilyContract):
    configs = both(Starcoder2Config, {"sliding_window": None, "use_bias": False, **UNTIED}, SLIDING)
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
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4
    holds_biases = True


class TestGPTNeoX(FamilyContract):
    own = TINY | {"intermediate_size": 56}
    configs = {
        "parallel": GPTNeoXConfig(**own),
        "serial": GPTNeoXConfig(**own, use_parallel_residual=False, **TIED, rotary_pct=0.5),
        "no-attention-biases": GPTNeoXConfig(**own, attention_bias=False),
    }
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4
    holds_biases = True


class TestGlm4(FamilyContract):
    configs = both(Glm4Config, {"attention_bias": False}, TIED, head_dim=8)


class TestApertus(FamilyContract):
    configs = both(ApertusConfig, TIED, {"attention_bias": True})


class TestArcee(FamilyContract):
    configs = both(ArceeConfig, TIED, BIASES)
    holds_biases = True


class TestNemotron(FamilyContract):
    configs = both(NemotronConfig, TIED, BIASES)
    holds_biases = True


class TestPhi(FamilyContract):
    configs = both(PhiConfig, TIED, {})
    holds_biases = True


class TestFalcon(FamilyContract):
    own = TINY | {"ffn_hidden_size": 56, "multi_query": False}
    configs = {
        "mha": FalconConfig(**own, parallel_attn=False, **UNTIED),
        "gqa": FalconConfig(
            **own, new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=2
        ),
        "one-kv-head": FalconConfig(**own | {"multi_query": True}, bias=True),
    }
    neurons = "ffn_hidden_size"
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4
    holds_biases = True

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        groups = 1 if config.multi_query else config.num_kv_heads
        return groups, config.num_attention_heads // groups


class TestGPT2(FamilyContract):
    own = {"n_embd": 32, "n_layer": 3, "n_head": 8, "n_positions": 128, "n_inner": 56}
    own |= {key: TINY[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    configs = {
        "tied": GPT2Config(**own, scale_attn_by_inverse_layer_idx=True),
        "untied": GPT2Config(**own, scale_attn_by_inverse_layer_idx=True, **UNTIED),
    }
    features = {"scale_attn_by_inverse_layer_idx": False}
    neurons = "n_inner"
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4
    holds_biases = True
