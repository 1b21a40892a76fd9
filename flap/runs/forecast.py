"""What a run will take: a ledger that goes through its stages without a weight or a text, and adds up their costs.

Images are read, because only the model's processor knows how many tokens an image is.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from flap.calibration.images import FIELD, Images, check_sees_images, read_images
from flap.calibration.recorder import recorded_operations
from flap.calibration.symmetric import num_elements
from flap.compression.linear import final_fit_operations
from flap.config import FlapConfig
from flap.data import HELD_OUT
from flap.data.read_windows import check_context
from flap.models import ModelAdapter, ModelSource, adapt, find_by_config
from flap.models.devices import ROOM_TO_RUN
from flap.models.shapes import shapes_of
from flap.runs.checks import check_budget, check_trainable
from flap.runs.choices import choose
from flap.runs.estimate import Estimate, StageEstimate, Streams
from flap.runs.free_memory import PROCESS_BYTES, FreeMemory, check_fits
from flap.runs.ledger import Cost, Ledger, Memory, Stage
from flap.runs.operations import Forward, counted
from flap.runs.place import Place
from flap.search.cost import SearchWalk, search_walk
from flap.storage import cache_root, ranks, to_json, write_text

T = TypeVar("T")
# What oneDNN and the heap of a CPU keep while experts run: each gets another number of tokens and has small tensors.
# Three times as much with covariances.
EXPERTS_BYTES = 200_000_000


@dataclass(kw_only=True)
class Forecast(Ledger):
    """The forecast of a run. Its properties are what the costs of stages depend on."""

    stages: Callable[[Ledger], Any]  # goes through the stages of a run
    model: ModelSource
    adapter: ModelAdapter  # of the model's skeleton
    ratio: float  # the share of the prunable parameters that is removed at least
    place: Place
    free: FreeMemory
    forward: Forward  # counted for the table of a dry run; a refusal looks at bytes alone
    images: Images | None = None  # the windows of calibration with images, where they can be read
    costs: list[tuple[str, Cost]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.ratio = 0.0 if self.config.mask_only else self.ratio

    def stage(self, stage: Stage[T], *inputs: Any) -> T:
        """Note what a stage takes. Nobody looks at its result, which there is not."""
        self.costs.append((stage.name, stage.cost(self, *inputs)))
        return cast(T, None)

    @cached_property
    def estimate(self) -> Estimate:
        """The costs of all stages."""
        self.costs.clear()
        self.stages(self)
        rows, left, checkpoint = dict[str, StageEstimate](), self.place.offloaded, 0.0
        for name, cost in self.costs:
            checkpoint += cost.checkpoint
            if cost.moments:
                row = self._row(name, cost, left + cost.files, checkpoint)
                rows[name] = row.after(rows.pop(name, None))
            left += cost.left
        unseen = self.choices.need_windows and self.config.calibration.images and self.images is None
        left_out = [name for _, cost in self.costs for name in cost.left_out] + [FIELD] * bool(unseen)
        return Estimate(tuple(rows.values()), self._streams, tuple(dict.fromkeys(left_out)))

    def _row(self, name: str, cost: Cost, in_cache: float, checkpoint: float) -> StageEstimate:
        experts = self.place.shapes.has_experts and self.place.shared
        process = PROCESS_BYTES + experts * EXPERTS_BYTES * (1 + 2 * self.choices.need_covariance)
        work = [use.work + use.weights * (not self.place.as_stored) if self.place.shared else 0 for use in cost.moments]
        needed = [use.host + on_host for use, on_host in zip(cost.moments, work, strict=True)]
        mapped = [use.streams + use.read for use in cost.moments]
        return StageEstimate(
            name,
            cost.passes,
            round(cost.operations),
            round(cost.tokens),
            round(max(use.weights + use.work for use in cost.moments)),
            round(max(needed)) + process,
            round(max(map(sum, zip(needed, mapped, strict=True)))) + process,
            round(in_cache + checkpoint),
            round(in_cache),
        )

    @property
    def _streams(self) -> Streams | None:
        if (walk := self.search_walk) is None:
            return None
        token_bytes = walk.most_streams * self.place.shapes.hidden * self.place.dtype.itemsize
        return Streams(walk.tokens, token_bytes)

    def check(self) -> None:
        """Check that the run fits into the memory and onto the disk that are free.

        Raises:
            ValueError: it surely does not; says what it takes and what is free.
        """
        check_fits(self)

    def lines(self) -> list[str]:
        """Return the estimate as text, one line a stage; at the end, whether the run would be refused."""
        free, left_out = self.free, self.estimate.left_out
        sizes = f"device {free.device / 1e9:.2f}, host {free.host / 1e9:.2f}, disk {free.disk / 1e9:.2f}"
        lines = [*self.estimate.lines(), f"free, GB: {sizes}"]
        lines += [f"not estimated: {', '.join(left_out)}"] if left_out else []
        try:
            self.check()
        except ValueError as error:
            lines.append(f"would be refused: {error}")
        return lines

    def save(self, path: Path) -> None:
        """Write estimate.json: all numbers of the stages, and what is free."""
        write_text(path, to_json({**asdict(self.estimate), "free_bytes": asdict(self.free)}, indent=1) + "\n")

    @property
    def seq_len(self) -> int:
        """The tokens of the longest calibration windows; shorter ones count as what as many tokens of these take."""
        return max(self.config.calibration.lengths)

    @property
    def processes(self) -> int:
        """The number of processes that share the work; the forecast is of one of them."""
        return self.config.processes or ranks.size()

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
    def _image_tokens(self) -> list[int]:
        return list(self.images.tokens) if self.images else []

    @property
    def tokens(self) -> int:
        """The tokens of the calibration windows of this process, those with an image among them."""
        return self.num_windows * self.seq_len + math.ceil(sum(self._image_tokens) / self.processes)

    @property
    def batch_tokens(self) -> int:
        """The tokens of the largest batch; a window with an image is one by itself."""
        batch_size = max(1, int(self.config.calibration.batch_size * self._shortened))
        return max(min(self.num_windows, batch_size) * self.seq_len, *self._image_tokens, 0)

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
        shapes = self.place.shapes
        if self.choices.structure.layers:
            recorded += len(shapes.layers) * recorded_operations(2 * shapes.hidden, covariance)
        return self.run_operations(self.tokens) + self.tokens * (again + recorded)

    def across(self) -> Memory:
        """Return what maps of whole layers take: what an MLP adds, inputs of layers, and two sets of co-moments."""
        if not self.choices.structure.layers:
            return Memory()
        products = Memory(work=2 * 4 * num_elements(2 * self.place.shapes.hidden))
        return self.place.states(self.tokens, 1, files=False) + self.place.states(self.tokens, 1) + products

    @property
    def fit_operations(self) -> float:
        """The operations of the final linear fits."""
        kept, ridge = 1 - self.ratio, getattr(self.choices.compensation, "ridge", None)
        return self.block_operations(lambda i, o: final_fit_operations(i, o, kept, ridge))

    def block_operations(self, of_block: Callable[[int, int], float]) -> float:
        """Return the sum over all experts of all blocks. of_block: from input and output channels."""
        return sum(block.experts * of_block(block.channels, block.outputs) for block in self.place.shapes.blocks)


def forecast(config: FlapConfig, stages: Callable[[Ledger], Any], run_dir: Path = Path()) -> Forecast:
    """Return what a run of this config will take. Of the model it needs the config, and for images the processor.

    What an interrupted start of this run has left is not known without its texts, and counts as used.

    Raises:
        ValueError: bad input, as far as it can be seen from that; names the field.
    """
    choices, model = choose(config), find_by_config(config.model, config.trust_remote_code)
    images = None
    if choices.need_windows:
        check_context("calibration", config.calibration.lengths, model.max_length)
        images = _images(config, model)
    adapter = adapt(model.skeleton(), *choices.units)
    budget = check_budget(adapter, choices, config, model)
    if choices.recovery is not None:
        check_trainable(choices.recovery, model, adapter)
    target = Path(config.checkpoint.dir or run_dir)
    free = FreeMemory.here(model.device, cache_root(config.cache_dir), target)
    return Forecast(
        config=config, choices=choices, stages=stages, model=model, adapter=adapter, ratio=budget.ratio, free=free,
        place=Place.of(config, choices, model, shapes_of(adapter), free.one_disk), forward=counted(adapter),
        images=images,
    )  # fmt: skip


def _images(config: FlapConfig, model: ModelSource) -> Images | None:
    """Return the image windows, if the model's processor is there to make them."""
    folder, path = config.calibration.images, config.model.path
    check_sees_images(folder, model.config)
    if folder is None or not Path(path).is_dir() or not model.processor_files:
        return None
    return read_images(folder, model.config, path, model.max_length, config.trust_remote_code)
