"""The families whose modules have LLaMA's names, each a few lines: its tiny configs, and what makes it differ."""

# ruff: noqa: RUF012 - the contract says that these are class variables

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
from tests.models.families.tiny import GQA, MHA, MULTIPLIERS, SLIDING, SOME_LAYERS_SLIDE, TIED, UNTIED


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
    configs = {
        "mha": GraniteConfig(**MHA, **MULTIPLIERS, **TIED),
        "gqa": GraniteConfig(**GQA, **MULTIPLIERS, attention_bias=True, mlp_bias=True),
    }
    features = dict.fromkeys(MULTIPLIERS, 1.0)
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
