"""The free memory and disk of this machine, and the refusal of a run that surely does not fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from flap.config import gigabytes
from flap.models.devices import free_bytes
from flap.storage.atomic_files import bytes_below

if TYPE_CHECKING:
    from flap.runs.forecast import Forecast
    from flap.search import Search

MARGIN = 1.25  # estimates are within a quarter of what is measured: only what is above that is refused
PROCESS_BYTES = 720_000_000  # Python, torch, transformers, this package, a tokenizer and a text
TO_TRAIN = "recover.gradient_checkpointing=true, a smaller recover.batch_size, or recover=lora"


@dataclass(frozen=True)
class FreeMemory:
    """Free bytes of a machine."""

    device: int  # on the device
    host: int  # on the host
    disk: int  # on the disk of `cache_dir`
    one_disk: bool = False  # the checkpoint is written to that disk, too

    @classmethod
    def here(cls, device: torch.device, cache: Path, target: Path, left: Path | None = None) -> "FreeMemory":
        """Return what is free on this machine. On a device that it has not, what is free on the host.

        target: the folder of the checkpoint. left: the folder of this run's working files: what an interrupted start
        has left there counts as free, because it is used.
        """
        place = _nearest(cache)
        there = device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")
        host = free_bytes(torch.device("cpu"))
        disk = shutil.disk_usage(place).free + (bytes_below(left) if left else 0)
        return cls(free_bytes(there), host, disk, place.stat().st_dev == _nearest(target).stat().st_dev)


def _nearest(path: Path) -> Path:
    """Return the path, or the folder in which it would be made."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def check_fits(forecast: "Forecast") -> None:
    """Check that a run fits into the free memory and onto the free disk.

    Raises:
        ValueError: it surely does not; says what it takes and what is free.
    """
    estimate, place, free = forecast.estimate, forecast.place, forecast.free
    _check_streams(forecast)
    field, smaller = f"model.placement={place.placement}", "a smaller calibration.batch_size, or choices without "
    smaller = f"{'' if place.streams else 'model.placement=stream, '}{smaller}covariances, as method=flap"
    if not place.shared:
        peak, loaded = estimate.peak("device_bytes"), estimate.stages[0].device_bytes if place.loaded else 0
        _check(peak.stage, peak.device_bytes - loaded, free.device, field, f"on {place.device}", smaller)
    peak = estimate.peak("host_bytes")
    _check(peak.stage, peak.host_bytes - PROCESS_BYTES, free.host, field, "in the host's memory", smaller)
    larger = "a larger disk, or fewer calibration windows"
    if free.one_disk and forecast.config.checkpoint.save:
        peak = estimate.peak("disk_bytes")
        _check(peak.stage, peak.disk_bytes, free.disk, "cache_dir", "on its disk with the checkpoint", larger)
    else:
        peak = estimate.peak("cache_bytes")
        _check(peak.stage, peak.cache_bytes, free.disk, "cache_dir", "on its disk", larger)


def _check(stage: str, needed: int, free: int, field: str, where: str, advice: str) -> None:
    """Check one kind of memory. stage: that takes the most of it."""
    advice = TO_TRAIN if stage == "recover" and field != "cache_dir" else advice
    if needed > MARGIN * free:
        raise ValueError(
            f"{field}: expected {gigabytes(needed)} GB free {where}, which the stage '{stage}' takes, and "
            f"{gigabytes(free)} GB are; take {advice} (dry_run=true shows what each stage takes)"
        )


def _check_streams(forecast: "Forecast") -> None:
    """Check that there is room for the hidden states of a search, and say how many tokens would have room."""
    streams, place, seq_len = forecast.estimate.streams, forecast.place, forecast.seq_len
    free = forecast.free.disk // forecast.processes if place.files else forecast.free.host
    if streams is None or streams.bytes <= MARGIN * free:
        return
    windows = free // (streams.token_bytes * seq_len)
    fitting = f"{windows * seq_len} tokens would fit" if windows else f"not one window of {seq_len} fits"
    where = "on the disk of cache_dir" if place.files else "in the host's memory"
    advice = "name a larger disk" if place.files else "take use_cache=true, which keeps them on disk"
    if place.files and not place.streams and streams.bytes <= MARGIN * forecast.free.host:
        advice = "take use_cache=false, which keeps them in memory"
    asked = cast("Search", forecast.choices.structure).tokens
    raise ValueError(
        f"structure.tokens={asked}: expected {gigabytes(streams.bytes)} GB free {where} for the hidden states "
        f"of the search ({streams.tokens} tokens in whole windows), and {gigabytes(free)} GB are; {fitting}, or "
        f"{advice}"
    )
