"""Write the hyperparameters that llama.cpp needs. Widths are those of the tensors."""

from gguf import MODEL_ARCH, GGUFWriter
from transformers import PreTrainedConfig

from flap.export.checkpoint import Shards, head_dim
from flap.export.gguf.architecture import GGUFArchitecture, slides
from flap.export.gguf.rope import add_rope
from flap.export.gguf.tensors import LazyTensor

NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
XIELU = ("alpha_n", "alpha_p", "beta", "eps")


def layer_widths(tensors: list[LazyTensor], head_dim: int, num_layers: int) -> list[dict[str, int]]:
    """Return the numbers of heads, neurons and experts of each layer, by GGUF key."""
    shapes = {one.name: one.shape for one in tensors}
    return [_widths(f"blk.{i}.", shapes, head_dim) for i in range(num_layers)]


def _widths(layer: str, shapes: dict[str, tuple[int, ...]], head_dim: int) -> dict[str, int]:
    queries = shapes[f"{layer}attn_output.weight"][1] // head_dim
    fused = shapes.get(f"{layer}attn_qkv.weight")
    keys = (fused[0] // head_dim - queries) // 2 if fused else shapes[f"{layer}attn_k.weight"][0] // head_dim
    widths = {"head_count": queries, "head_count_kv": keys}
    if (experts := shapes.get(f"{layer}ffn_down_exps.weight")) is None:
        return widths | {"feed_forward_length": shapes[f"{layer}ffn_down.weight"][1]}
    count, _, neurons = experts
    widths |= {"feed_forward_length": neurons, "expert_feed_forward_length": neurons, "expert_count": count}
    if shared := shapes.get(f"{layer}ffn_down_shexp.weight"):
        widths["expert_shared_feed_forward_length"] = shared[1]
    return widths


def choose_architecture(row: GGUFArchitecture, config: PreTrainedConfig, widths: list[dict[str, int]]) -> MODEL_ARCH:
    """Return llama.cpp's architecture for a model with these widths (`layer_widths`).

    Raises:
        ValueError: llama.cpp does not support these widths for this model.
    """
    if row.square and any(layer["head_count"] * head_dim(config) != config.hidden_size for layer in widths):
        raise ValueError(row.all_heads)
    if all(layer == widths[0] for layer in widths):
        return row.arch
    if row.by_layer is None:
        raise ValueError(row.one_width)
    return row.by_layer


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, row: GGUFArchitecture, widths: list[dict[str, int]], by_layer: bool
) -> None:
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
    if "expert_count" in widths[0]:
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "rms_norm_eps"):  # the key also tells which norms they are
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(next(getattr(config, name) for name in NORM_EPS if hasattr(config, name)))
    add_rope(writer, config)
    if row.slides and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(slides(config))
    for key, name in row.keys.items():
        if (value := getattr(config, name)) is not None:
            getattr(writer, f"add_{key}")(value)


def add_activation(writer: GGUFWriter, shards: Shards, num_layers: int) -> None:
    """Write the learned numbers of Apertus' activation, which llama.cpp has as keys."""
    for name in XIELU:
        tensors = [f"model.layers.{i}.mlp.act_fn.{name}" for i in range(num_layers)]
        if tensors[0] in shards.shapes:
            getattr(writer, f"add_xielu_{name}")([shards.read(tensor).item() for tensor in tensors])
