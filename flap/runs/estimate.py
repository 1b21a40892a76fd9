"""The estimate of a run as a value: what each stage takes, the largest of them, and the table for people."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

HEADINGS = ("stage", "passes", "tokens", "operations", "device, GB", "host, GB", "resident, GB", "disk, GB")
COUNTS = ("passes", "tokens", "operations")
MEMORY = ("device_bytes", "host_bytes", "resident_bytes", "disk_bytes")


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes; what is done at several times under one name is one stage, where the last of it is done."""

    stage: str
    passes: int  # walks over all layers, and forward passes in their place, at most
    operations: int  # of floating point
    tokens: int  # that pass through a layer, on average over the layers
    device_bytes: int  # the peak on the device that runs the layers
    host_bytes: int  # the peak of what must be in the host's memory, with the device's where the device is the CPU
    resident_bytes: int  # the same with mapped files, which the system drops when memory is short; what it reports
    disk_bytes: int  # the most that the run has on disk
    cache_bytes: int  # of it below `cache_dir`, where the rest is the checkpoint

    def after(self, earlier: "StageEstimate | None") -> "StageEstimate":
        """Return the estimate of this stage together with what was done earlier under its name."""
        if earlier is None:
            return self
        sums = {field: getattr(self, field) + getattr(earlier, field) for field in COUNTS}
        peaks = {field: max(getattr(self, field), getattr(earlier, field)) for field in (*MEMORY, "cache_bytes")}
        return replace(self, **sums, **peaks)


@dataclass(frozen=True)
class Streams:
    """The hidden states of a search at their most."""

    tokens: int  # of one stream
    token_bytes: int  # what all streams together take for one token

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.tokens * self.token_bytes


@dataclass(frozen=True)
class Estimate:
    """The estimates of all stages, in order."""

    stages: tuple[StageEstimate, ...]
    streams: Streams | None = None  # of a search
    left_out: tuple[str, ...] = ()  # measurements that are not estimated

    def peak(self, field: str) -> StageEstimate:
        """Return the stage in which a field, such as "device_bytes", is largest."""
        return max(self.stages, key=lambda stage: int(getattr(stage, field)))

    def lines(self) -> list[str]:
        """Return the table, aligned: passes, tokens, operations, and memory and disk in GB (10^9 bytes)."""
        sums = [sum(getattr(stage, field) for stage in self.stages) for field in COUNTS]
        peaks = [getattr(self.peak(field), field) for field in MEMORY]
        rows = [HEADINGS, *map(_row, self.stages), _cells("in all, peak", sums, peaks)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _row(one: StageEstimate) -> tuple[str, ...]:
    return _cells(one.stage, *([getattr(one, field) for field in fields] for fields in (COUNTS, MEMORY)))


def _cells(name: str, counts: Sequence[int], memory: Sequence[int]) -> tuple[str, ...]:
    formats = zip(("", ",", ".1e"), counts, strict=True)
    sizes = (f"{num_bytes / 1e9:.2f}" if num_bytes else "-" for num_bytes in memory)
    return (name, *(format(number, form) if number else "-" for form, number in formats), *sizes)
