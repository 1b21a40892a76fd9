"""What single families need besides their row: checks of a config, and keys that no other architecture has."""

from gguf import GGUFWriter
from transformers import PreTrainedConfig

from flap.export.gguf.architecture import GGUFChanges

NO_ROPE_EVERY = 4  # layers without RoPE in llama.cpp's smollm3
# llama.cpp tells the largest models by their number of layers, and computes something else in these.
GEMMA2_27B, GEMMA3_27B, EXAONE4_32B = 46, 62, 64


def require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Check a setting.

    Raises:
        ValueError: its value is not an allowed one.
    """
    if value not in allowed:
        raise ValueError(f"gguf: {name}={value}: llama.cpp runs this export with {', '.join(map(str, allowed))}")


def check_smollm3(config: PreTrainedConfig, changes: GGUFChanges) -> None:
    """Check that RoPE is in three of four layers."""
    rotated = [int((i + 1) % NO_ROPE_EVERY != 0) for i in range(config.num_hidden_layers)]
    require("no_rope_layers", config.no_rope_layers, (rotated,))


def check_gemma2(config: PreTrainedConfig, changes: GGUFChanges) -> None:
    """Check the softcaps, which llama.cpp always computes, and the scale of the attention."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        require(f"{name} is a number", getattr(config, name) is not None, (True,))
    _check_scale(config, changes, GEMMA2_27B)


def check_gemma3(config: PreTrainedConfig, changes: GGUFChanges) -> None:
    """Check the scale of the attention."""
    _check_scale(config, changes, GEMMA3_27B)


def _check_scale(config: PreTrainedConfig, changes: GGUFChanges, largest: int) -> None:
    if config.num_hidden_layers != largest:
        require("query_pre_attn_scalar", config.query_pre_attn_scalar, (config.head_dim,))
    elif changes.heads or config.query_pre_attn_scalar != config.hidden_size // config.num_attention_heads:
        raise ValueError(
            f"gguf: num_hidden_layers={largest}: llama.cpp takes the scale of its attention from the number of heads; "
            "prune with structure=UL-MM structure.remove_heads=0"
        )


def check_exaone4(config: PreTrainedConfig, changes: GGUFChanges) -> None:
    """Check that no window slides in a model of another size than the one that llama.cpp slides."""
    if config.num_hidden_layers != EXAONE4_32B:
        require("sliding_window", config.sliding_window, (None,))


def check_olmoe(config: PreTrainedConfig, changes: GGUFChanges) -> None:
    """Check that keys have the width of queries, as their norm in llama.cpp has."""
    require("num_key_value_heads", config.num_key_value_heads, (config.num_attention_heads,))


def add_granite(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write Granite's multipliers."""
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def add_softcaps(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the bounds of Gemma's logits, as far as it has them."""
    if config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def add_logit_scale(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the factor of Cohere's logits."""
    writer.add_logit_scale(config.logit_scale)


def add_parallel_residual(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write whether attention and MLP of GPT-NeoX read the same input."""
    writer.add_parallel_residual(config.use_parallel_residual)
