"""Convert Gemma 3 text models for llama.cpp.

llama.cpp's architecture for Gemma 3 needs layers with equal numbers of heads and neurons, and
supports no biases.
"""

from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig

from flap.checkpoint.export.checkpoint import check_setting, head_dim, ropes
from flap.models.gguf_header import LAYERS_OF_27B, SOFT_CAPS

# In llama.cpp, every sixth layer of Gemma 3 has full attention, and the other layers have sliding
# windows.
PERIOD = 6
# The frequency base with which llama.cpp computes the RoPE of layers with sliding windows.
LOCAL_BASE = 10000.0


def check_gemma3(config: PreTrainedConfig) -> None:
    """Check that llama.cpp gives the same results as transformers for a model with this config.

    Raises:
        ValueError: llama.cpp does not support a setting. The message names the supported values.
    """
    check_setting("gguf", "hidden_activation", config.hidden_activation, ("gelu_pytorch_tanh",))
    for name in SOFT_CAPS:
        check_setting("gguf", name, getattr(config, name, None), (None,))
    both_ways = bool(getattr(config, "use_bidirectional_attention", False))
    check_setting("gguf", "use_bidirectional_attention", both_ways, (False,))

    # llama.cpp divides attention scores by the square root of the head size. In the 27B model, it
    # divides them by the square root of hidden size / number of heads.
    expected = head_dim(config)
    if config.num_hidden_layers == LAYERS_OF_27B["gemma3"]:
        expected = config.hidden_size // config.num_attention_heads
    check_setting("gguf", "query_pre_attn_scalar", config.query_pre_attn_scalar, (expected,))

    full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    expected_full = list(range(PERIOD - 1, config.num_hidden_layers, PERIOD))
    check_setting("gguf", "layers with full attention", full, (expected_full,))

    rope, local_rope = ropes(config)
    check_setting("gguf", "rope_type", rope["rope_type"], ("default", "linear"))
    local = (local_rope["rope_type"], local_rope["rope_theta"])
    check_setting("gguf", "RoPE of sliding windows", local, (("default", LOCAL_BASE),))


def convert_gemma3(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Convert a tensor to the values that llama.cpp expects.

    Gemma's RMSNorm multiplies by 1 + weight, but llama.cpp's RMSNorm multiplies by the weight.
    """
    return tensor + 1 if name.endswith("norm.weight") else tensor


def add_gemma3_attention(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the length of the sliding windows, and the RoPE of the layers with full attention."""
    writer.add_sliding_window(config.sliding_window)
    rope, _ = ropes(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
