"""What a run will take: a ledger that goes through its stages without a weight or a text, and adds up their costs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from flap.config import FlapConfig
from flap.data.read_windows import check_context
from flap.models import ModelSource, adapt, find_by_config
from flap.models.shapes import shapes_of
from flap.runs.checks import check_budget, check_trainable
from flap.runs.choices import choose
from flap.runs.estimate import Estimate, StageEstimate, Streams
from flap.runs.free_memory import PROCESS_BYTES, FreeMemory, check_fits
from flap.runs.ledger import Cost, Ledger, Stage
from flap.runs.operations import counted
from flap.runs.place import Place
from flap.runs.workload import Workload
from flap.storage import cache_root, to_json, write_text

T = TypeVar("T")
# What oneDNN and the heap of a CPU keep while experts run: each gets another number of tokens and has small tensors.
# Three times as much with covariances.
EXPERTS_BYTES = 200_000_000


@dataclass(kw_only=True)
class Forecast(Workload):
    """The forecast of a run: what its stages take, and whether that is there."""

    stages: Callable[[Ledger], Any]  # goes through the stages of a run
    model: ModelSource
    costs: list[tuple[str, Cost]] = field(default_factory=list, init=False)

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
        left_out = [name for _, cost in self.costs for name in cost.left_out]
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


def forecast(config: FlapConfig, stages: Callable[[Ledger], Any], run_dir: Path = Path()) -> Forecast:
    """Return what a run of this config will take. Of the model it needs the config.

    What an interrupted start of this run has left is not known without its texts, and counts as used.

    Raises:
        ValueError: bad input, as far as it can be seen from that; names the field.
    """
    choices, model = choose(config), find_by_config(config.model, config.trust_remote_code)
    if choices.need_windows:
        check_context("calibration", config.calibration.lengths, model.max_length)
    adapter = adapt(model.skeleton(), choices.structure.experts)
    budget = check_budget(adapter, choices, config, model)
    if choices.recovery is not None:
        if choices.recovery.use == "recovery":
            check_context("recover", [choices.recovery.seq_len], model.max_length)
        check_trainable(choices.recovery, model, adapter)
    target = Path(config.checkpoint.dir or run_dir)
    free = FreeMemory.here(model.device, cache_root(config.cache_dir), target)
    return Forecast(
        config=config, choices=choices, stages=stages, model=model, adapter=adapter, ratio=budget.ratio, free=free,
        place=Place.of(config, choices, model, shapes_of(adapter), free.one_disk), forward=counted(adapter),
    )  # fmt: skip
