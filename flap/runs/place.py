"""Where the work of a run is done, and the memory that the parts of the model take there.

Legend: I input, O output channels · E experts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from flap.calibration.recorder import recorded_bytes
from flap.calibration.symmetric import num_elements
from flap.config import FlapConfig
from flap.models import ModelSource
from flap.models.families import sees_images
from flap.models.shapes import BlockShape, Shapes
from flap.runs.choices import Choices
from flap.runs.ledger import Memory

# Copies of the activations of a batch that running a layer makes, in the type of the weights: of hidden states, and of
# a block's widest activations.
HIDDEN_COPIES, WIDE_COPIES = 5, 3
PLAIN_WEIGHTS = 2  # copies of an output projection in float32: scores and compensations without covariances


@dataclass(frozen=True)
class Place:
    """Where the work of a run is done."""

    shapes: Shapes
    device: torch.device  # a "cpu" (and "mps") has the memory of the host
    dtype: torch.dtype  # of the weights
    placement: str  # model.placement of the config
    streams: bool = False  # one layer at a time is read from disk
    as_stored: bool = True  # the weights are those of the files, which a CPU maps into memory and does not copy
    files: bool = True  # there is a folder of the run in which hidden states can be mapped files
    loaded: bool = False  # the weights are in memory already: those of the model that `flap.prune` is given
    links: bool = False  # the checkpoint shares the files of changed layers: it has their names and is on their disk
    device_limit: float = math.inf  # bytes of weights that placement=auto puts on the device at most
    host_limit: float = math.inf  # and on the host; the others are on disk

    @classmethod
    def of(cls, config: FlapConfig, choices: Choices, model: ModelSource, shapes: Shapes, one_disk: bool) -> "Place":
        """Return the place of a run. one_disk: the checkpoint is on the disk of `cache_dir`."""
        known: PreTrainedConfig = model.config
        loaded, streams = model.loaded, model.placed.streams
        limits = (math.inf, math.inf) if loaded else model.placed.limits(model.device)
        stock_experts = shapes.has_experts and choices.structure.layer_by_layer  # which may keep one width for all
        changed = (
            bool(getattr(known, "quantization_config", None)) or shapes.has_experts
        )  # the experts of a layer are stacked
        return cls(
            shapes, model.device, model.dtype, model.placement, streams,
            loaded or (model.dtype == known.dtype and not changed),
            streams or (choices.structure.measures and config.use_cache),
            loaded,
            # a stock checkpoint has each expert by itself, and a language model with a vision tower other names
            one_disk and streams and not (stock_experts or sees_images(known)),
            *limits,
        )  # fmt: skip

    @property
    def shared(self) -> bool:
        """Whether the device has no memory of its own."""
        return self.device.type in ("cpu", "mps")

    @property
    def stays_mapped(self) -> bool:
        """Whether the model is in memory as the files that it was read from, mapped into the memory of a CPU."""
        return self.shared and self.as_stored and not self.streams

    @property
    def offloaded(self) -> float:
        """The bytes of weights that placement=auto has no memory for."""
        limit = self.device_limit + self.host_limit
        return 0.0 if self.streams else max(0.0, self.bytes(self.shapes.parameters) - limit)

    def bytes(self, elements: float) -> float:
        """Return the bytes of so many elements in the type of the weights."""
        return elements * self.dtype.itemsize

    def weights(self, parameters: float) -> Memory:
        """Return the weights that are present: the whole model, or these parameters if it stays on disk."""
        if self.streams:
            return Memory(weights=self.bytes(parameters), read=self.bytes(parameters))
        total = self.bytes(self.shapes.parameters)
        on_device = min(total, self.device_limit)
        return Memory(weights=on_device, host=min(total - on_device, self.host_limit))

    def whole(self) -> Memory:
        """Return the weights of the whole model, which was read from its files."""
        num_bytes = self.bytes(self.shapes.parameters)
        return Memory(weights=num_bytes, read=num_bytes)

    def layer(self) -> Memory:
        """Return the weights while a layer is present; of a whole model, all layers have been used by then."""
        return self.weights(self.shapes.largest_layer) + self._used(self.shapes.in_layers)

    def ends(self, head: bool = True) -> Memory:
        """Return the weights while embeddings, norm and head are present. head: it is used, and embeddings were not."""
        used, ends = self.shapes.hidden * self.shapes.vocabulary * head, self.weights(self.shapes.ends)
        if self.streams and self.shared and self.as_stored:
            return Memory(weights=ends.weights, read=self.bytes(used))
        return ends + self._used(self.shapes.in_layers + used)

    def _used(self, parameters: float) -> Memory:
        """Return the weights that a CPU has used of a whole model in mapped files."""
        return Memory(read=self.bytes(parameters) if self.stays_mapped else 0)

    def states(self, tokens: float, generations: float, files: bool = True) -> Memory:
        """Return hidden states. generations: 2 for inputs and outputs of a layer. files: in files, if a folder is."""
        num_bytes = generations * self.bytes(tokens * self.shapes.hidden)
        return Memory(streams=num_bytes) if files and self.files else Memory(host=num_bytes)

    def run(self, tokens: float, recorded: float = 0) -> Memory:
        """Return the activations of a layer for a batch. recorded: bytes that a recorder holds of an element.

        Of experts that leave whole, a recorder holds the outputs, too.
        """
        size, width = self.dtype.itemsize, max(block.width for block in self.shapes.blocks)
        outputs = max(block.chosen * block.whole for block in self.shapes.blocks) if recorded else 0
        watched = (WIDE_COPIES if self.shapes.has_experts else 1) * size + recorded
        return Memory(
            work=tokens
            * ((HIDDEN_COPIES + outputs) * self.shapes.hidden * size + width * max(WIDE_COPIES * size, watched))
        )

    def comoments(self, sets: int = 2) -> Memory:
        """Return the co-moments of both blocks of a layer, of fitting and held-out windows or of one set of them."""
        pairs = (layer.blocks for layer in self.shapes.layers)
        elements = max(sum(block.experts * num_elements(block.channels) for block in pair) for pair in pairs)
        return Memory(work=sets * 4 * elements)

    def observed(self, states: Memory, factors: Memory, batch_tokens: int, sets: int = 2) -> list[Memory]:
        """Return the moments at which the covariances of a layer are collected, and factorised. sets: `comoments`."""
        present = self.layer() + states + self.comoments(sets)
        return [present + part for part in (self.run(batch_tokens, recorded_bytes(covariance=True)), factors)]

    def factors(self, bytes_of: Callable[[int, int], float]) -> Memory:
        """Return what a layer's factorisation takes; of experts, one at a time. bytes_of: I and O -> bytes of one.

        The output projections of all experts are in memory meanwhile, once as they are and once in float32.
        """

        def num_bytes(block: BlockShape) -> float:
            all_experts = (4 + self.dtype.itemsize) * block.output_parameters if block.experts > 1 else 0
            return all_experts + bytes_of(block.channels, block.outputs)

        return Memory(work=max(map(num_bytes, self.shapes.blocks)))

    def plain(self) -> Memory:
        """Return what scores and compensations without covariances take: copies of the largest output projection.

        Of experts that leave whole there are none.
        """
        sizes = (block.output_parameters for block in self.shapes.blocks if not block.whole)
        return self.stacking() + Memory(work=4 * PLAIN_WEIGHTS * max(sizes))

    def stacking(self) -> Memory:
        """Return what stacking the experts of a layer takes, or slicing them, where they leave whole: 2 of 3 parts."""
        sizes = (block.output_parameters for block in self.shapes.blocks if block.whole)
        return Memory(work=2 * self.bytes(max(sizes, default=0)))
