"""What is told of one of llama.cpp's architectures, and what pruning may do to a model of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from transformers import PreTrainedConfig

Values = Mapping[str, tuple[object, ...]]
QKV = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias")


class GGUFChanges(NamedTuple):
    """What pruning may do to a model: give layers other widths, add biases to outputs, remove heads."""

    widths: bool = False
    biases: bool = False
    heads: bool = False


NO_CHANGES = GGUFChanges()


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class GGUFArchitecture:
    """What llama.cpp computes of a family.

    computes: the values that it supports of a config key, where it does not support all.
    biases: the ends of the names of the biases that it adds.
    ropes: the types of RoPE that it computes.
    by_layer: the architecture with the same computation, and a width for each layer.
    pairs: it rotates neighbouring channels where transformers rotates halves, so rows of q and k change places.
    offset: its norms multiply by the weight, and transformers' by the weight plus 1.
    square: its attention has the hidden size as its width, so no head can be removed.
    untied: it needs an output matrix besides the embeddings, also where both are the same.
    slides: it has sliding windows, in the layers that a key names.
    check: checks what `computes` cannot say. keys: writes keys that other architectures do not have.
    """

    arch: MODEL_ARCH
    computes: Values
    biases: tuple[str, ...] = QKV
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    by_layer: MODEL_ARCH | None = None
    pairs: bool = False
    offset: bool = False
    square: bool = False
    untied: bool = False
    slides: bool = False
    check: Callable[[PreTrainedConfig, GGUFChanges], None] = _nothing
    keys: Callable[[GGUFWriter, PreTrainedConfig], None] = _nothing

    @property
    def name(self) -> str:
        """llama.cpp's name."""
        return arch_name(self.arch)

    def takes_bias(self, name: str) -> bool:
        """Return whether llama.cpp adds the bias of this name (its own)."""
        return name.endswith(self.biases)

    @property
    def takes_compensation(self) -> bool:
        """Whether llama.cpp adds the biases of compensation, on the outputs of attention and MLP."""
        return self.takes_bias("attn_output.bias") and self.takes_bias("ffn_down.bias")

    @property
    def one_width(self) -> str:
        """The error for layers that differ in width, or for biases that it does not take."""
        pruned = "prune with structure=UL-UM" + ("" if self.takes_compensation else " and compensation=none")
        return f"gguf: llama.cpp's {self.name} has one width for all layers; {pruned}"

    @property
    def all_heads(self) -> str:
        """The error for removed heads where attention has the hidden size as its width."""
        pruned = "prune with structure=UL-MM structure.remove_heads=0"
        return f"gguf: llama.cpp's {self.name} has as many heads as the hidden size has room for; {pruned}"


def arch_name(arch: MODEL_ARCH) -> str:
    """Return llama.cpp's name of an architecture."""
    return str(MODEL_ARCH_NAMES[arch])


def slides(config: PreTrainedConfig) -> list[bool]:
    """Return for each layer whether its attention slides."""
    if getattr(config, "sliding_window", None) is None:
        return [False] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in kinds]
