"""What one of llama.cpp's architectures computes, and what pruning may do to a model of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES
from transformers import PreTrainedConfig

from flap.export.checks import check_setting
from flap.export.gguf.rope import check_rope

# The values of a config key that llama.cpp computes, or what gives them for a config.
Values = Mapping[str, tuple[object, ...] | Callable[[PreTrainedConfig], tuple[object, ...]]]
QKV = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias")


class GGUFChanges(NamedTuple):
    """What pruning may do to a model."""

    widths: bool = False  # give layers other widths
    biases: bool = False  # add biases to outputs
    heads: bool = False  # remove heads


NO_CHANGES = GGUFChanges()


@dataclass(frozen=True)
class GGUFArchitecture:
    """What llama.cpp computes of a family."""

    arch: MODEL_ARCH
    computes: Values  # of the config keys of which it does not compute all values
    biases: tuple[str, ...] = QKV  # the ends of the names of the biases that it adds
    ropes: tuple[str, ...] = ("default", "linear", "yarn")  # the types of RoPE that it computes
    by_layer: MODEL_ARCH | None = None  # the architecture with the same computation, and a width for each layer
    pairs: bool = False  # it rotates neighbouring channels, transformers halves, so rows of q and k change places
    offset: bool = False  # its norms multiply by the weight, and transformers' by the weight plus 1
    square: bool = False  # its attention has the hidden size as its width, so no head can be removed
    untied: bool = False  # it needs an output matrix besides the embeddings, also where both are the same
    slides: bool = False  # it has sliding windows, in the layers that a key names
    largest: int = 0  # layers of the one model whose attention it scales by hidden size / heads; others: by head size
    keys: Mapping[str, str] = field(default_factory=dict)  # other keys that it needs, and the config keys of the values

    @property
    def name(self) -> str:
        """llama.cpp's name."""
        return str(MODEL_ARCH_NAMES[self.arch])

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

    def check(self, config: PreTrainedConfig, changes: GGUFChanges) -> None:
        """Check that llama.cpp computes a model of this family, and what pruning may do to it.

        Raises:
            ValueError: it does not.
        """
        for name, allowed in self.computes.items():
            values = allowed(config) if callable(allowed) else allowed
            check_setting("gguf", name, getattr(config, name, None), values)
        check_rope(config, self.ropes)
        if not self.slides:
            check_setting("gguf", "sliding attention", any(slides(config)), (False,))
        if self.largest and config.num_hidden_layers != self.largest:
            check_setting("gguf", "query_pre_attn_scalar", config.query_pre_attn_scalar, (config.head_dim,))
        elif self.largest and (
            changes.heads or config.query_pre_attn_scalar != config.hidden_size // config.num_attention_heads
        ):
            raise ValueError(
                f"gguf: num_hidden_layers={self.largest}: llama.cpp takes the scale of its attention from the number "
                "of heads; prune with structure=UL-MM structure.remove_heads=0"
            )
        if self.by_layer is None and (changes.widths or (changes.biases and not self.takes_compensation)):
            raise ValueError(self.one_width)
        if self.square and changes.heads:
            raise ValueError(self.all_heads)


def slides(config: PreTrainedConfig) -> list[bool]:
    """Return for each layer whether its attention slides."""
    if getattr(config, "sliding_window", None) is None:
        return [False] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in kinds]
