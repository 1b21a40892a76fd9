"""The free memory and disk of this machine, and the refusal of a run that surely does not fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from flap.estimation.estimate import PROCESS_BYTES, Estimate
from flap.estimation.work import Place, Work
from flap.models.devices import free_bytes
from flap.storage.atomic_files import bytes_below

TO_TRAIN = "recover.gradient_checkpointing=true, a smaller recover.batch_size, or recover=lora"
MARGIN = 1.25  # estimates are within a quarter of what is measured: only what is above that is refused


@dataclass(frozen=True)
class Room:
    """Free bytes: on the device, on the host, and on the disk of `cache_dir`.

    one_disk: the checkpoint is written to that disk, too.
    """

    device: int
    host: int
    disk: int
    one_disk: bool = False

    @classmethod
    def here(cls, device: torch.device, cache: Path, target: Path, left: Path | None = None) -> "Room":
        """Return the room of this machine. On a device that it has not, that of the host.

        target: the folder of the checkpoint. left: the folder of this run's working files: what an interrupted start
        has left there counts as free, because it is used.
        """
        place = _nearest(cache)
        there = device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")
        host = int(psutil.virtual_memory().available)
        disk = shutil.disk_usage(place).free + (bytes_below(left) if left else 0)
        return cls(free_bytes(there), host, disk, place.stat().st_dev == _nearest(target).stat().st_dev)


def _nearest(path: Path) -> Path:
    """Return the path, or the folder in which it would be made."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def check_fits(estimate: Estimate, work: Work, place: Place, room: Room) -> None:
    """Check that a run fits into the free memory and onto the free disk.

    Raises:
        ValueError: it surely does not; says what it takes and what is free.
    """
    smaller = "a smaller calibration.batch_size, or choices without covariances, as method=flap"
    memory = smaller if place.streams else f"model.placement=stream, {smaller}"
    where, loaded = f"model.placement={place.placement}", estimate.stages[0].device_bytes if place.loaded else 0
    _check_streams(estimate, work, place, room)
    if not place.shared:
        _check(estimate, "device_bytes", loaded, room.device, where, f"on {place.device}", memory)
    _check(estimate, "host_bytes", PROCESS_BYTES, room.host, where, "in the host's memory", memory)
    saved = room.one_disk and work.saves
    kind, where = ("disk_bytes", " with the checkpoint") if saved else ("cache_bytes", "")
    larger = "a larger disk, or fewer windows as far as it is their hidden states"
    _check(estimate, kind, 0, room.disk, "cache_dir", f"on its disk{where}", larger)


def _check(estimate: Estimate, kind: str, there: int, free: int, field: str, where: str, advice: str) -> None:
    """Check one kind of memory. there: what this process has of it already."""
    peak = estimate.peak(kind)
    needed = int(getattr(peak, kind)) - there
    advice = TO_TRAIN if peak.stage == "recover" and field != "cache_dir" else advice
    if needed > MARGIN * free:
        raise ValueError(
            f"{field}: expected {gigabytes(needed)} GB free {where}, which the stage '{peak.stage}' takes, and "
            f"{gigabytes(free)} GB are; take {advice} (dry_run=true shows what each stage takes)"
        )


def _check_streams(estimate: Estimate, work: Work, place: Place, room: Room) -> None:
    """Check that there is room for the hidden states of a search, and say how many tokens would have room."""
    streams, free = estimate.streams, room.disk if place.files else room.host
    if streams is None or streams.bytes <= MARGIN * free:
        return
    windows = free // (streams.token_bytes * work.seq_len)
    fitting = f"{windows * work.seq_len} tokens would fit" if windows else f"not one window of {work.seq_len} fits"
    where = "on the disk of cache_dir" if place.files else "in the host's memory"
    advice = "name a larger disk" if place.files else "take use_cache=true, which keeps them on disk"
    if place.files and not place.streams and streams.bytes <= MARGIN * room.host:
        advice = "take use_cache=false, which keeps them in memory"
    asked = getattr(work.structure, streams.field)
    raise ValueError(
        f"structure.{streams.field}={asked}: expected {gigabytes(streams.bytes)} GB free {where} for the hidden states "
        f"of the search ({streams.tokens} tokens in whole windows), and {gigabytes(free)} GB are; {fitting}, or "
        f"{advice}"
    )


def gigabytes(num_bytes: float) -> str:
    """Return bytes in GB (10^9), with three digits."""
    return f"{num_bytes / 1e9:.3g}"
