"""The workload of a run: tokens, operations, and bytes of what stays, from which the costs of its stages are made."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from flap.calibration.recorder import recorded_operations
from flap.compression.linear import final_fit_operations
from flap.data import HELD_OUT
from flap.models import ModelAdapter
from flap.models.devices import ROOM_TO_RUN
from flap.runs.free_memory import FreeMemory
from flap.runs.ledger import Ledger, Memory
from flap.runs.operations import Forward
from flap.runs.place import Place
from flap.search.cost import SearchWalk, search_walk
from flap.storage import ranks


@dataclass(kw_only=True)
class Workload(Ledger):
    """What a run has to do, of which each process has its share, as far as it is known without weights and texts."""

    adapter: ModelAdapter  # of the model's skeleton
    ratio: float  # the share of the prunable parameters that is removed at least
    place: Place
    free: FreeMemory
    forward: Forward  # counted for the table of a dry run; a refusal looks at bytes alone

    def __post_init__(self) -> None:
        self.ratio = 0.0 if self.config.mask_only else self.ratio

    @property
    def seq_len(self) -> int:
        """The tokens of the longest calibration windows; shorter ones count as what as many tokens of these take."""
        return max(self.config.calibration.lengths)

    @property
    def processes(self) -> int:
        """The number of processes that share the work; the forecast is of one of them."""
        return ranks.size()

    @property
    def _all_windows(self) -> float:
        return self.config.calibration.num_samples * self._shortened if self.choices.need_windows else 0

    @property
    def num_windows(self) -> int:
        """The calibration windows of this process; 0 if no choice needs any."""
        return math.ceil(self._all_windows / self.processes)

    @property
    def _shortened(self) -> float:
        return self.config.calibration.lengths[0] / self.seq_len

    @property
    def tokens(self) -> int:
        """The tokens of the calibration windows of this process."""
        return self.num_windows * self.seq_len

    @property
    def batch_tokens(self) -> int:
        """The tokens of the largest batch."""
        batch_size = max(1, int(self.config.calibration.batch_size * self._shortened))
        return min(self.num_windows, batch_size) * self.seq_len

    def own_windows(self, windows: int, batch_size: int) -> int:
        """Return how many windows of an evaluation the process has that has most; batches are shared out."""
        return min(windows, math.ceil(math.ceil(windows / batch_size) / self.processes) * batch_size)

    def own_tokens(self, use: str) -> int:
        """Return about how many tokens of the windows of a use the model writes itself."""
        own, recovery = self.config.calibration, self.choices.recovery
        total = recovery.tokens if use == "recovery" and recovery else own.num_samples * own.lengths[0]
        return math.ceil(self.own_shares[use] * total / self.processes)

    @property
    def search_walk(self) -> SearchWalk | None:
        """The walk of a search; None where there is no search."""

        def whole_windows(tokens: int) -> int:
            held_out = math.ceil(math.ceil(self._all_windows) / HELD_OUT)
            return min(math.ceil(tokens / self.seq_len), held_out) * self.seq_len

        return search_walk(self.choices.structure, self.place.shapes, whole_windows, self.processes)

    @property
    def fits_in_memory(self) -> bool:
        """Whether there is room for the whole model on the device, though it is pruned from disk."""
        return ROOM_TO_RUN * self.place.bytes(self.place.shapes.parameters) <= self.free.device

    @property
    def kept_parameters(self) -> float:
        """The parameters after pruning."""
        return self.place.shapes.parameters - self.ratio * self.place.shapes.prunable

    @property
    def kept_layers(self) -> float:
        """The bytes of all layers after pruning."""
        return self.place.bytes(self.kept_parameters - self.place.shapes.ends)

    @property
    def pruned(self) -> Memory:
        """The pruned layers, if the dense ones stay in memory too, as files that a CPU has mapped."""
        return Memory(host=self.kept_layers if self.place.stays_mapped and not self.place.loaded else 0)

    @property
    def window_files(self) -> float:
        """The bytes of the hidden states of all windows in files, from which a killed run goes on; 0 in memory."""
        return self.place.states(self.tokens, 1).streams if self.place.streams else 0

    def run_operations(self, tokens: float, kept: float = 1.0, length: int | None = None, head: bool = False) -> float:
        """Return the operations of a forward pass. kept: the share of the weights. length: of windows, in tokens."""
        length = length or self.seq_len
        return tokens * (kept * self.forward.all_layers(length) + head * self.forward.head(length))

    def head_operations(self, tokens: float, length: int) -> float:
        """Return the operations of the head."""
        return tokens * self.forward.head(length)

    def search_operations(self, walk: SearchWalk) -> float:
        """Return the operations of a walk of a search besides those of its covariances."""
        forward, shapes = self.forward, self.place.shapes
        of_layers = [forward.layer(i, self.seq_len) for i in range(len(shapes.layers))]
        fits = walk.fit_operations(shapes) if self.choices.compensation.needs_covariance else 0.0
        return walk.run_operations(of_layers, forward.head(self.seq_len)) + fits

    def observe_operations(self, covariance: bool) -> float:
        """Return the operations of all windows through all layers with recorders.

        Those run the gate and up projections of experts once more, and the down projections of such as leave whole.
        """
        blocks, share = self.place.shapes.blocks, 1 if self.choices.structure.experts else 2 / 3
        again = sum(2 * block.active_parameters * share for block in blocks if block.experts > 1)
        recorded = sum(block.chosen * recorded_operations(block.channels, covariance) for block in blocks)
        return self.run_operations(self.tokens) + self.tokens * (again + recorded)

    @property
    def fit_operations(self) -> float:
        """The operations of the final linear fits."""
        kept, ridge = 1 - self.ratio, getattr(self.choices.compensation, "ridge", None)
        return self.block_operations(lambda i, o: final_fit_operations(i, o, kept, ridge))

    def block_operations(self, of_block: Callable[[int, int], float]) -> float:
        """Return the sum over all experts of all blocks. of_block: from input and output channels."""
        return sum(block.experts * of_block(block.channels, block.outputs) for block in self.place.shapes.blocks)
