"""Tests of families whose modules have the same names as in LLaMA."""

# ruff: noqa: RUF012 - FamilyContract annotates attributes of its subclasses as ClassVar

from transformers import (
    Cohere2Config,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
)

from flap.method.allocation import ULMM
from tests.models.families.contract import FamilyContract
from tests.models.families.tiny import (
    BIASES,
    MULTIPLIERS,
    SLIDING,
    SOME_LAYERS_SLIDE,
    TIED,
    UNTIED,
    both,
)


class TestLlama(FamilyContract):
    configs = both(LlamaConfig, TIED, BIASES)
    holds_biases = True


class TestMistral(FamilyContract):
    configs = both(MistralConfig, {"sliding_window": None, **TIED}, SLIDING)
    features = {"sliding_window": 16}


class TestQwen2(FamilyContract):
    configs = both(Qwen2Config, TIED, {"use_sliding_window": True, **SOME_LAYERS_SLIDE})
    features = {"sliding_window": 16}


class TestQwen3(FamilyContract):
    sliding = {"attention_bias": True, "use_sliding_window": True, **SOME_LAYERS_SLIDE}
    configs = both(Qwen3Config, TIED, sliding, head_dim=8)
    features = {"sliding_window": 16}


class TestSmolLM3(FamilyContract):
    sliding = {
        **SLIDING,
        **UNTIED,
        "use_sliding_window": True,
        "no_rope_layers": [0, 1, 0],
        **BIASES,
    }
    configs = both(SmolLM3Config, {"no_rope_layers": [1, 0, 1], **TIED}, sliding)
    features = {"no_rope_layers": [1, 1, 1], "sliding_window": 16}
    holds_biases = True


class TestGranite(FamilyContract):
    configs = both(GraniteConfig, TIED, BIASES, **MULTIPLIERS)
    features = dict.fromkeys(MULTIPLIERS, 1.0)
    holds_biases = True


class TestGemma2(FamilyContract):
    own = {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }
    configs = both(
        Gemma2Config, SOME_LAYERS_SLIDE, {**SLIDING, **UNTIED, "attention_bias": True}, **own
    )
    features = {
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 16,
    }


class TestGemma3(FamilyContract):
    own = {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        **SOME_LAYERS_SLIDE,
    }
    configs = both(Gemma3TextConfig, {}, {**UNTIED, "attention_bias": True}, **own)
    features = {"final_logit_softcapping": 30.0, "sliding_window": 16}


class TestOlmo2(FamilyContract):
    configs = both(Olmo2Config, {}, {"attention_bias": True, **TIED})


class TestMinistral3(FamilyContract):
    configs = both(Ministral3Config, TIED, SLIDING, head_dim=8)
    features = {"sliding_window": 16}


class TestGemma(FamilyContract):
    configs = both(GemmaConfig, {}, {"attention_bias": True, **UNTIED}, head_dim=8)


class TestCohere2(FamilyContract):
    configs = both(
        Cohere2Config, {}, {**UNTIED, "attention_bias": True}, logit_scale=0.5, **SOME_LAYERS_SLIDE
    )
    features = {"logit_scale": 1.0, "sliding_window": 16}
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4


class TestErnie45(FamilyContract):
    configs = both(Ernie4_5Config, {}, {"use_bias": True, **UNTIED}, head_dim=8)
    holds_biases = True


class TestExaone4(FamilyContract):
    full = {"sliding_window": None, "layer_types": ["full_attention"] * 3}
    configs = both(Exaone4Config, {**full, **TIED}, SOME_LAYERS_SLIDE)
    features = {"sliding_window": 16}


class TestHunYuan(FamilyContract):
    configs = both(HunYuanDenseV1Config, TIED, {"attention_bias": True}, head_dim=8)


class TestSeedOss(FamilyContract):
    configs = both(SeedOssConfig, TIED, {"attention_out_bias": True, "mlp_bias": True}, head_dim=8)
    holds_biases = True


class TestStableLm(FamilyContract):
    configs = both(StableLmConfig, {"use_parallel_residual": True, **TIED}, {"use_qkv_bias": True})
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4


class TestOlmo3(FamilyContract):
    configs = both(Olmo3Config, {}, {"attention_bias": True, **TIED}, **SOME_LAYERS_SLIDE)
    features = {"sliding_window": 16}
