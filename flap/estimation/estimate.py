"""The estimate of a run, stage by stage, from shapes and choices alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from flap.estimation.disk import Disk
from flap.estimation.moments import Moments
from flap.estimation.parts import EXPERTS_BYTES, Use
from flap.estimation.stages import Stage, Stages
from flap.estimation.work import Place, Work
from flap.models.shapes import Shapes
from flap.search.cost import widest

PROCESS_BYTES = 720_000_000  # Python, torch, transformers, this package, a tokenizer and a text
PRUNING = ("calibrate", "score", "allocate", "compress", "prune")  # the stages that `Report.weight_passes` counts


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes.

    passes: walks over all layers, and forward passes in their place, at most. operations: of floating point. tokens:
    how many pass through a layer, on average over the layers. device_bytes: the peak on the device that runs the
    layers. host_bytes: the peak of what must be in the host's memory, with the device's work where the device is the
    CPU. resident_bytes: the same with files that are mapped into memory, which the system drops when memory is short;
    the peak that it reports of the process. disk_bytes: the most that the run has on disk; cache_bytes: of it below
    `cache_dir`, where the rest is the checkpoint.
    """

    stage: str
    passes: int
    operations: int
    tokens: int
    device_bytes: int
    host_bytes: int
    resident_bytes: int
    disk_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Streams:
    """The hidden states of a search at their most. field: the option that says how many tokens each stream has.

    tokens: those of one stream. token_bytes: what all streams together take for one token.
    """

    field: str
    tokens: int
    token_bytes: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.tokens * self.token_bytes


@dataclass(frozen=True)
class Estimate:
    """The estimates of all stages, in order. streams: of a search; left_out: measurements that are not estimated."""

    stages: tuple[StageEstimate, ...]
    streams: Streams | None = None
    left_out: tuple[str, ...] = ()

    @property
    def weight_passes(self) -> int:
        """The passes from calibration to compression, as a report counts them; a search may end after fewer."""
        return sum(one.passes for one in self.stages if one.stage in PRUNING)

    def peak(self, field: str) -> StageEstimate:
        """Return the stage in which a field, such as "device_bytes", is largest."""
        return max(self.stages, key=lambda stage: int(getattr(stage, field)))


def estimate_run(shapes: Shapes, work: Work, place: Place) -> Estimate:
    """Return the estimate of a run."""
    stages = tuple(_complete(stage, shapes, work, place) for stage in Stages(shapes, work, place))
    walk = widest([walk for stage in ("score", "allocate") for walk in work.walks(stage, shapes)])
    token_bytes = walk.most_streams * shapes.hidden * place.itemsize if walk else 0
    return Estimate(stages, Streams(walk.field, walk.tokens, token_bytes) if walk else None, tuple(work.left_out))


def _complete(stage: Stage, shapes: Shapes, work: Work, place: Place) -> StageEstimate:
    """Return the estimate of a stage: its passes, tokens and operations, with memory and disk."""
    uses: Sequence[Use] = getattr(Moments(shapes, work, place), stage.name)()
    disk = Disk(shapes, work, place)
    in_cache = disk.in_cache(stage.name)
    experts = EXPERTS_BYTES * (1 + 2 * work.needs_covariance) if shapes.has_experts and place.shared else 0
    process = PROCESS_BYTES + experts
    return StageEstimate(
        stage.name,
        stage.passes,
        round(stage.operations),
        round(stage.tokens),
        round(max(use.weights + use.work for use in uses)),
        round(max(_needed(use, place) for use in uses)) + process,
        round(max(_resident(use, place) for use in uses)) + process,
        round(in_cache + disk.checkpoint(stage.name)),
        round(in_cache),
    )


def _needed(use: Use, place: Place) -> float:
    """Return what must be in the host's memory. Weights that are mapped files on a CPU need not."""
    weights = 0 if place.as_stored else use.weights
    return use.host + (use.work + weights if place.shared else 0)


def _resident(use: Use, place: Place) -> float:
    """Return what is in the host's memory while that is large enough for all files that are mapped into it."""
    weights = 0 if place.as_stored else use.weights
    return use.host + use.streams + use.read + (use.work + weights if place.shared else 0)
