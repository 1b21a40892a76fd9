"""Config values that the tiny configs of the families share."""

from typing import Any

from transformers import PreTrainedConfig

from tests.cases import VOCAB

# Heads have 32 / 8 = 4 channels (hidden_size / num_attention_heads), unless a config sets head_dim.
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MHA = TINY | {"num_key_value_heads": 8, "intermediate_size": 56}
GQA = TINY | {"num_key_value_heads": 4, "intermediate_size": 56}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}
SLIDING = {"sliding_window": 8}
SOME_LAYERS_SLIDE = SLIDING | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}


def both(
    config: type[PreTrainedConfig], mha: dict[str, Any], gqa: dict[str, Any], **own: Any
) -> Any:
    """Return tiny configs of a family with multi-head attention and with grouped-query attention.

    mha, gqa: additional config keys of the config with this kind of attention.
    own: additional config keys of both configs.
    """
    return {"mha": config(**MHA | own | mha), "gqa": config(**GQA | own | gqa)}
