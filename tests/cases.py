"""The importance metrics, pruning structures and tiny models on which many tests are run."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    Gemma4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from flap.data import Batch
from flap.method.allocation import ALAM, ALMM, ULMM, ULUM, Structure
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.importance import (
    EAN,
    IFV,
    OBS,
    REAP,
    WIFN,
    WIFV,
    Magnitude,
    Metric,
    MoNE,
    Random,
    Taylor,
    Wanda,
)
from flap.method.search import Search
from flap.models import PlacedModel
from flap.models.architecture import auto_class

VOCAB = 96
METRICS: dict[str, Callable[[], Metric]] = {
    "IFV": IFV,
    "WIFV": WIFV,
    "WIFN": WIFN,
    "magnitude": Magnitude,
    "wanda": Wanda,
    "random": Random,
    "OBS": OBS,
    "taylor": Taylor,
}
EXPERT_METRICS: dict[str, Callable[[], Metric]] = {
    "REAP": REAP,
    "EAN": EAN,
    "MoNE": MoNE,
}
STRUCTURES: dict[str, Callable[[], Structure]] = {
    "UL-UM": ULUM,
    "UL-MM": ULMM,
    "AL-MM": ALMM,
    "AL-AM": ALAM,
    "search": Search,
}
RATIOS = (0.1, 0.2, 0.35, 0.5, 0.7)

_TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MHA = _TINY | {"num_key_value_heads": 8}
_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama-mha": LlamaConfig(**_MHA),
    "llama-gqa": LlamaConfig(**_TINY, tie_word_embeddings=True),
    "llama-gqa-biases": LlamaConfig(**_TINY, attention_bias=True, mlp_bias=True),
    "mistral-mha-tied": MistralConfig(**_MHA, sliding_window=8, tie_word_embeddings=True),
    "mistral-gqa": MistralConfig(**_TINY, sliding_window=None),
    "qwen2-mha": Qwen2Config(**_MHA, **_SLIDING),
    "qwen2-gqa-tied": Qwen2Config(**_TINY, tie_word_embeddings=True),
    "qwen3-mha-tied": Qwen3Config(**_MHA, tie_word_embeddings=True),
    "qwen3-gqa": Qwen3Config(**_TINY, **_SLIDING),
}
# Mixtures of experts. Each layer has six experts of 24 neurons, and a router that sends each token
# to two of them. In qwen3_moe, the last layer has an ordinary MLP instead of experts.
_EXPERTS = _TINY | {"num_hidden_layers": 3, "num_experts_per_tok": 2}
MIXTURES: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**_EXPERTS | {"intermediate_size": 24}, num_local_experts=6),
    "qwen3_moe": Qwen3MoeConfig(
        **_EXPERTS, moe_intermediate_size=24, num_experts=6, mlp_only_layers=[2]
    ),
}
# Models with layers that have linear or latent attention instead of ordinary attention, or with
# layers that differ in the number of query heads per KV head.
_LINEAR = _TINY | {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRIDS: dict[str, PreTrainedConfig] = {
    "qwen3_5": Qwen3_5TextConfig(**_LINEAR),
    "qwen3_next": Qwen3NextConfig(
        **_LINEAR,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "gemma4": Gemma4TextConfig(
        **_TINY | {"num_hidden_layers": 6},
        global_head_dim=16,
        hidden_size_per_layer_input=0,
        sliding_window=8,
        attention_k_eq_v=True,
        num_global_key_value_heads=2,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
    "deepseek_v3": DeepseekV3Config(
        **_TINY | {"num_key_value_heads": 8},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
}


def tiny_model(architecture: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a random model of one of the architectures above.

    `changes` replace values of the architecture's config.
    """
    config = deepcopy((ARCHITECTURES | MIXTURES | HYBRIDS)[architecture])
    for key, value in changes.items():
        setattr(config, key, value)
    return random_model(config, seed)


# In a real model, the buffers whose names end with one of these strings have learnt values.
# `random_model` fills these buffers with random values.
LEARNED = ("e_score_correction_bias", "layer_scalar", "std_bias", "std_scale", "input_max")


def random_model(config: PreTrainedConfig, seed: int = 0, **options: object) -> PreTrainedModel:
    """Return a random model with large weights, and with random values in all biases and norms."""
    torch.manual_seed(seed)
    model = auto_class(config).from_config(deepcopy(config), **options).eval()
    for name, parameter in model.named_parameters():
        scale, centre = (0.3, 1.0) if "norm" in name else (0.2, 0.0)
        nn.init.normal_(parameter, mean=centre, std=scale)
    for name, buffer in model.named_buffers():
        if name.endswith(LEARNED):
            nn.init.normal_(buffer, mean=0.5, std=0.1)
    return model


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """Give every Linear of the decoder layers a random bias, even if the architecture has none."""
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.bias = nn.Parameter(torch.randn(module.out_features) * 0.3)
    return model


def tokens(windows: int = 6, length: int = 24, seed: int = 1) -> torch.Tensor:
    """Return `windows` sequences of `length` random tokens."""
    return torch.randint(3, VOCAB, (windows, length), generator=torch.Generator().manual_seed(seed))


def collect(model: PlacedModel, tokens_NT: torch.Tensor, batch_size: int) -> list[LayerStatistics]:
    """Collect the calibration statistics of every layer of the dense (unpruned) model."""
    return Calibration(model, Batch.of(tokens_NT), batch_size, []).observe()
