"""The shapes of a model, from its skeleton on the meta device: all that an estimate needs to know of it.

Legend: I input channels of an output projection · O output channels · E experts.
"""

from dataclasses import dataclass
from functools import cached_property

from flap.models import Block, ModelAdapter, Pair


@dataclass(frozen=True)
class BlockShape:
    """The sizes of an attention or an MLP."""

    channels: int  # of one expert
    outputs: int  # the width of the residual stream
    units: int  # of one expert, or whole experts
    parameters: int  # the prunable ones, of all experts
    experts: int = 1
    chosen: int = 1  # how many of the experts a token is sent to
    whole: bool = False  # whether they leave whole

    @classmethod
    def of(cls, block: Block) -> "BlockShape":
        """Return the shape of a block."""
        members = len(block.members)
        channels, units = block.columns_UC.numel() // members, block.num_units // (1 if block.whole else members)
        outputs = int(block.output.weight.shape[0])
        return cls(channels, outputs, units, block.num_parameters, members, block.num_chosen, block.whole)

    @property
    def active_parameters(self) -> float:
        """The parameters that one token passes."""
        return self.parameters * self.chosen / self.experts

    @property
    def width(self) -> int:
        """The channels that one token has at the output projection, those of all chosen experts."""
        return self.channels * self.chosen

    @property
    def output_parameters(self) -> int:
        """The parameters of the output projection, of all experts."""
        return self.outputs * self.channels * self.experts


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a decoder layer."""

    blocks: Pair[BlockShape]
    parameters: int  # all of them, with norms and routers

    @property
    def prunable(self) -> int:
        """The prunable parameters."""
        return sum(block.parameters for block in self.blocks)


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model."""

    layers: tuple[LayerShape, ...]
    hidden: int
    vocabulary: int
    ends: int  # the parameters of embeddings, final norm and head; tied tensors count once

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        return self.ends + self.in_layers

    @cached_property
    def in_layers(self) -> int:
        """The parameters of the decoder layers."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def prunable(self) -> int:
        """The prunable parameters."""
        return sum(layer.prunable for layer in self.layers)

    @cached_property
    def largest_layer(self) -> int:
        """The parameters of the largest layer."""
        return max(layer.parameters for layer in self.layers)

    @cached_property
    def blocks(self) -> tuple[BlockShape, ...]:
        """The blocks of all layers."""
        return tuple(block for layer in self.layers for block in layer.blocks)

    @property
    def has_experts(self) -> bool:
        """Whether a layer has experts instead of one MLP."""
        return any(block.experts > 1 for block in self.blocks)


def shapes_of(adapter: ModelAdapter) -> Shapes:
    """Return the shapes of a model, whose weights may be on the meta device."""
    total = sum(parameter.numel() for parameter in adapter.model.parameters())
    layers = tuple(
        LayerShape(
            Pair(*(BlockShape.of(block) for block in adapter.blocks(i))),
            sum(parameter.numel() for parameter in adapter.layers[i].parameters()),
        )
        for i in range(len(adapter.layers))
    )
    vocabulary = int(adapter.model.get_output_embeddings().weight.shape[0])
    return Shapes(
        layers, layers[0].blocks.attention.outputs, vocabulary, total - sum(layer.parameters for layer in layers)
    )
