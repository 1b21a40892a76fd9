"""The estimate for people: one line a stage, the peaks, and what is free."""

from flap.estimation.estimate import Estimate, StageEstimate
from flap.estimation.room import Room

HEADINGS = ("stage", "passes", "tokens", "operations", "device, GB", "host, GB", "resident, GB", "disk, GB")
MEMORY = ("device_bytes", "host_bytes", "resident_bytes", "disk_bytes")


def lines(estimate: Estimate, room: Room) -> list[str]:
    """Return the table, aligned: passes, tokens, operations, and memory and disk in GB (10^9 bytes)."""
    rows = [HEADINGS, *map(_row, estimate.stages), _totals(estimate)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    free = f"free, GB: device {room.device / 1e9:.2f}, host {room.host / 1e9:.2f}, disk {room.disk / 1e9:.2f}"
    left_out = [f"not estimated: {', '.join(estimate.left_out)}"] if estimate.left_out else []
    return [*table, free, *left_out]


def _row(stage: StageEstimate) -> tuple[str, ...]:
    memory = (_size(getattr(stage, field)) for field in MEMORY)
    return (stage.stage, str(stage.passes or "-"), _count(stage.tokens), _operations(stage.operations), *memory)


def _totals(estimate: Estimate) -> tuple[str, ...]:
    passes, tokens, operations = (
        sum(getattr(stage, field) for stage in estimate.stages) for field in ("passes", "tokens", "operations")
    )
    memory = (_size(getattr(estimate.peak(field), field)) for field in MEMORY)
    return ("in all, peak", str(passes), _count(tokens), _operations(operations), *memory)


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _operations(number: int) -> str:
    return f"{number:.1e}" if number else "-"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}" if num_bytes else "-"
