"""The work of a run: its choices and its numbers of windows, as far as they decide what the run takes.

Legend: N windows · T tokens a window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from flap.allocation import Structure
from flap.compression import Compensation
from flap.data import HELD_OUT
from flap.importance import Metric
from flap.models.shapes import Shapes
from flap.search.cost import SearchWalk, search_walks


@dataclass(frozen=True)
class Texts:
    """Texts whose perplexity is measured: how many there are, the tokens of all, the largest batch, chunk of logits."""

    count: int
    tokens: int
    batch_tokens: int
    logits_bytes: int


@dataclass(frozen=True)
class Training:
    """A training after compression. num_bytes: of a step, at least; parameters: how many are trained."""

    steps: int
    tokens: int
    held_out: int  # tokens on which the divergence is measured, before, in between and after
    evaluations: int
    num_bytes: int
    parameters: float
    checkpointing: bool
    in_parts: bool  # low-rank updates: the gradients of the weights themselves are not made
    processes: int


@dataclass(frozen=True)
class Place:
    """Where the work is done. itemsize: bytes of a weight.

    device: the type of the device; on a "cpu" (and "mps") it has the memory of the host. placement: as of the config.
    streams: one layer at a time is read from disk.
    as_stored: the weights are used as they are in the files, which are then mapped into the memory of a CPU and not
    copied. files: a run's folder exists in which hidden states can be mapped files. loaded: the weights are in memory
    already, those of the model that `flap.prune` is given. links: the checkpoint shares the files of changed layers, as
    it has their names and is on the same disk. device_limit, host_limit: the most bytes of weights that
    placement=auto puts on the device and on the host; the rest is on disk.
    """

    device: torch.device
    placement: str
    itemsize: int
    streams: bool = False
    as_stored: bool = True
    files: bool = True
    loaded: bool = False
    links: bool = False
    device_limit: float = math.inf
    host_limit: float = math.inf

    @property
    def shared(self) -> bool:
        """Whether the device has no memory of its own."""
        return self.device.type in ("cpu", "mps")


@dataclass(frozen=True)
class Work:
    """What a run does. num_windows: N, 0 if no choice needs windows; seq_len: T; batch_size: windows in a batch.

    plain_statistics: whether statistics without covariances are collected first. in_sequence: whether each layer is
    pruned before the next one is calibrated. ratio: the share of the prunable parameters that is removed; 0 with
    `mask_only`. texts: None if no perplexity is measured, or of texts of unknown length.
    """

    metric: Metric
    structure: Structure
    compensation: Compensation
    num_windows: int
    seq_len: int
    batch_size: int
    ratio: float
    plain_statistics: bool = True
    in_sequence: bool = False
    saves: bool = True
    gguf_bytes: float = 0.0  # bytes of a parameter in the GGUF file; 0: no such file
    texts: Texts | None = None
    texts_in_memory: bool = True  # whether the whole model is loaded to be measured, though it is pruned from disk
    own_tokens: int = 0  # of the text that the model writes itself
    image_tokens: Sequence[int] = field(default_factory=tuple)  # of each calibration window with an image
    training: Training | None = None
    left_out: Sequence[str] = field(default_factory=tuple)  # measurements that are not estimated

    @property
    def needs_covariance(self) -> bool:
        """Whether covariances are collected."""
        return self.metric.needs_covariance or self.compensation.needs_covariance

    def observed(self, stage: str) -> bool:
        """Whether covariances are collected in a stage, where a search walks with trials in it."""
        scored = stage == "score" and self.metric.needs_covariance
        return scored or self.compensation.needs_covariance

    @property
    def tokens(self) -> int:
        """The tokens of all windows, those with an image among them."""
        return self.num_windows * self.seq_len + sum(self.image_tokens)

    @property
    def batch_tokens(self) -> int:
        """The tokens of the largest batch; a window with an image is one by itself."""
        return max(min(self.num_windows, self.batch_size) * self.seq_len, *self.image_tokens, 0)

    def whole_windows(self, tokens: int) -> int:
        """Return the tokens of the held-out windows that a search measures on for so many."""
        held_out = math.ceil(self.num_windows / HELD_OUT)
        return min(math.ceil(tokens / self.seq_len), held_out) * self.seq_len

    def walks(self, stage: str, shapes: Shapes) -> list[SearchWalk]:
        """Return the walks of a search in a stage."""
        return search_walks(self.structure, shapes, self.ratio, self.whole_windows).get(stage, [])
