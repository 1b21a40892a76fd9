"""The parts that memory is made of in a run: weights, hidden states, activations, covariances and their factors.

The numbers of copies are those of the code and of LAPACK. They were fitted to `benchmarks/scale.py`; after a change of
the mathematics they have to be fitted again (docs/scale.md). Legend: I input, O output channels · E experts.
"""

from dataclasses import astuple, dataclass

from flap.calibration.symmetric import STRIP
from flap.estimation.work import Place, Work
from flap.models.shapes import BlockShape, Shapes

# Copies of one covariance in float32 (a float64 counts as two, the factor of a fit as half of that, strips of rows as a
# tenth), beside the co-moments, and of one output projection in float32: while OBS scores, trial fits and the final
# fits are computed.
OBS_COPIES, OBS_WEIGHTS = 2.2, 2.5
TRIAL_COPIES, TRIAL_WEIGHTS = 0.6, 3
FIT_COPIES, FIT_WEIGHTS = 1.1, 3
PLAIN_WEIGHTS = 2  # of an output projection: scores and compensations without covariances
# What oneDNN and the heap of a CPU keep of experts, each of which gets another number of tokens and has small tensors;
# three times as much with covariances.
EXPERTS_BYTES = 200_000_000
# The largest file that transformers writes; safetensors first copies all tensors of a file from a GPU to the host.
SHARD_BYTES = 50e9
# Copies of the activations of a batch, in the type of the weights: of hidden states, of a block's widest activations.
HIDDEN_COPIES = 5
WIDE_COPIES = 3
# What recorders hold of an element of these activations, in bytes: float32 before and after centring; for co-moments.
RECORDED_BYTES = 8
COMOMENT_BYTES = 12


@dataclass(frozen=True)
class Use:
    """What is alive at one moment, in bytes.

    weights, work: on the device, tensors of the model and all else. host: on the host and not in a file. streams:
    hidden states in mapped files. read: weights in the mapped files that they are read from.
    """

    weights: float = 0
    work: float = 0
    host: float = 0
    streams: float = 0
    read: float = 0

    def __add__(self, other: "Use") -> "Use":
        return Use(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Parts:
    """The parts of a run's memory; each is a `Use`."""

    shapes: Shapes
    work: Work
    place: Place

    def weights(self, parameters: float) -> Use:
        """Return the weights that are present: the whole model, or these parameters if it stays on disk."""
        if self.place.streams:
            return Use(weights=self.bytes(parameters), read=self.bytes(parameters))
        total = self.bytes(self.shapes.parameters)
        on_device = min(total, self.place.device_limit)
        return Use(weights=on_device, host=min(total - on_device, self.place.host_limit))

    def layer(self) -> Use:
        """Return the weights while a layer is present; of a whole model, all layers have been used by then."""
        return self.weights(self.shapes.largest_layer) + self._read(self.shapes.in_layers)

    def ends(self, used: int) -> Use:
        """Return the weights while embeddings, norm and head are present, and so many parameters of them are used."""
        ends = self.weights(self.shapes.ends)
        if self.place.streams and self.place.shared and self.place.as_stored:
            return Use(weights=ends.weights, read=self.bytes(used))
        return ends + self._read(self.shapes.in_layers + used)

    @property
    def head(self) -> int:
        """The parameters of the head."""
        return self.shapes.hidden * self.shapes.vocabulary

    def _read(self, parameters: float) -> Use:
        """Return the weights that a CPU has used of a whole model in mapped files."""
        return Use(read=self.bytes(parameters) if self.stays_mapped else 0)

    @property
    def stays_mapped(self) -> bool:
        """Whether the model is in memory as the files that it was read from, mapped into the memory of a CPU."""
        return self.place.shared and self.place.as_stored and not self.place.streams

    def pruned(self) -> Use:
        """Return the pruned layers, if the dense ones stay beside them, as files that a CPU has mapped into memory."""
        return Use(host=self.kept_layers if self.stays_mapped and not self.place.loaded else 0)

    @property
    def kept_layers(self) -> float:
        """The bytes of all layers after pruning."""
        return self.bytes(self.shapes.in_layers - self.work.ratio * self.shapes.prunable)

    def states(self, tokens: float, generations: float, files: bool = True) -> Use:
        """Return hidden states. generations: 2 for inputs and outputs of a layer. files: in files, if a folder is."""
        num_bytes = generations * self.bytes(tokens * self.shapes.hidden)
        return Use(streams=num_bytes) if files and self.place.files else Use(host=num_bytes)

    def run(self, tokens: float, recorded_bytes: float = 0) -> Use:
        """Return the activations of a layer for a batch. recorded_bytes: what a recorder holds of an element."""
        size, width = self.place.itemsize, max(block.width for block in self.shapes.blocks)
        recorded = (WIDE_COPIES if self.shapes.has_experts else 1) * size + recorded_bytes
        wide = width * max(WIDE_COPIES * size, recorded)
        return Use(work=tokens * (HIDDEN_COPIES * self.shapes.hidden * size + wide))

    def comoments(self, sets: int = 2) -> Use:
        """Return the co-moments of both blocks of a layer, of fitting and held-out windows or of one set of them."""
        elements = (sum(map(_triangle, layer.blocks)) for layer in self.shapes.layers)
        return Use(work=sets * 4 * max(elements))

    def factors(self, covariances: float, weights: float) -> Use:
        """Return copies of the largest covariance and its output projection in float32; one expert at a time.

        The output projections of all experts are there beside them, once as they are and once in float32.
        """

        def num_bytes(block: BlockShape) -> float:
            all_experts = (4 + self.place.itemsize) * block.output_parameters if block.experts > 1 else 0
            return all_experts + 4 * block.channels * (covariances * block.channels + weights * block.outputs)

        return Use(work=max(map(num_bytes, self.shapes.blocks)))

    def in_float(self, copies: float) -> Use:
        """Return copies of the largest output projection, of all experts, in float32."""
        return Use(work=4 * copies * max(block.output_parameters for block in self.shapes.blocks))

    def bytes(self, parameters: float) -> float:
        """Return the bytes of so many elements in the type of the weights."""
        return parameters * self.place.itemsize


def _triangle(block: BlockShape) -> float:
    """Return the elements of the co-moments of a block, of all experts: half of each matrix, in strips."""
    return block.experts * block.channels * (block.channels + min(STRIP, block.channels)) / 2
