"""A run that cannot fit is refused with its numbers; whatever may fit is not."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flap.runs.forecast import Forecast
from flap.runs.free_memory import MARGIN, FreeMemory
from tests.runs.conftest import Foretell

PLENTY = FreeMemory(10**12, 10**12, 10**12)


def refusal(forecast: Forecast, room: FreeMemory) -> str:
    with pytest.raises(ValueError) as caught:
        replace(forecast, free=room).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def on_gpu(forecast: Forecast) -> Forecast:
    return replace(forecast, place=replace(forecast.place, device=torch.device("cuda")))


def test_what_fits_is_not_refused(foretell: Foretell) -> None:
    for arguments in ((), ("method=flap_plus",), ("model.placement=stream",)):
        forecast = foretell(*arguments)
        replace(forecast, free=PLENTY).check()
        assert not any("refused" in line for line in replace(forecast, free=PLENTY).lines())


def test_the_device_is_too_small(foretell: Foretell) -> None:
    forecast = on_gpu(foretell())
    peak = forecast.estimate.peak("device_bytes")
    line = refusal(forecast, replace(PLENTY, device=10**5))
    expected = rf"model.placement=device: expected {peak.device_bytes / 1e9:.3g} GB free on cuda, which the stage "
    assert re.match(expected + rf"'{peak.stage}' takes, and 0.0001 GB are; take model.placement=stream, ", line)
    replace(forecast, free=replace(PLENTY, device=int(peak.device_bytes / MARGIN) + 1)).check()


def test_the_host_is_too_small(foretell: Foretell) -> None:
    line = refusal(foretell("model.placement=stream"), replace(PLENTY, host=10**4))
    assert re.match(r"model.placement=stream: expected 0.\d+ GB free in the host's memory, which the stage '", line)
    assert "take a smaller calibration.batch_size" in line


def test_a_training_is_too_large(foretell: Foretell) -> None:
    forecast = on_gpu(foretell("recover=full", "recover.tokens=8192", "recover.seq_len=16", "recover.batch_size=512"))
    assert forecast.estimate.peak("device_bytes").stage == "recover"
    line = refusal(forecast, replace(PLENTY, device=10**5))
    assert "which the stage 'recover' takes" in line and "; take recover.gradient_checkpointing=true, a smaller" in line


def test_the_disk_is_too_small(foretell: Foretell) -> None:
    line = refusal(foretell("model.placement=stream"), replace(PLENTY, disk=10**4))
    assert re.match(r"cache_dir: expected 0.000\d+ GB free on its disk, which the stage '\w+' takes, and 1e-05", line)


@pytest.mark.parametrize(
    ("argument", "room", "where", "advice"),
    [
        ("use_cache=true", "disk", "on the disk of cache_dir", "take use_cache=false, which keeps them in memory"),
        ("model.placement=stream", "disk", "on the disk of cache_dir", "name a larger disk"),
        ("use_cache=false", "host", "in the host's memory", "take use_cache=true, which keeps them on disk"),
    ],
)
def test_streams_that_fit_nowhere_say_how_many_tokens_would(
    argument: str, room: str, where: str, advice: str, foretell: Foretell
) -> None:
    choices = ("method=flap_plus", "calibration.num_samples=40", argument)
    forecast = foretell(*choices, "structure.tokens=128")
    streams = forecast.estimate.streams
    assert streams is not None and streams.tokens == 128
    line = refusal(forecast, replace(PLENTY, **{room: 50 * streams.token_bytes}))
    assert line.startswith(f"structure.tokens=128: expected {streams.bytes / 1e9:.3g} GB free {where}")
    assert line.endswith(f"; 48 tokens would fit, or {advice}")
    assert "; not one window of 16 fits, or" in refusal(forecast, replace(PLENTY, **{room: 1000}))
    fitting = foretell(*choices, "structure.tokens=48").estimate.streams
    assert fitting is not None and fitting.bytes <= 50 * streams.token_bytes


def test_what_an_interrupted_start_of_this_run_left_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("mine", "others"):
        (tmp_path / "cache" / "streams" / key / "search").mkdir(parents=True)
        (tmp_path / "cache" / "streams" / key / "search" / "hidden-0").write_bytes(bytes(2**26))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    here = partial(FreeMemory.here, torch.device("cpu"), tmp_path / "cache", tmp_path / "run" / "checkpoint")
    mine = tmp_path / "cache" / "streams" / "mine"
    assert here().disk == 1000 and 0 <= here(mine).disk - 1000 - 2**26 < 2**16
    assert here().one_disk
    other = Path("/dev/shm")
    if other.is_dir() and other.stat().st_dev != tmp_path.stat().st_dev:
        assert not FreeMemory.here(torch.device("cpu"), tmp_path / "cache", other / "run").one_disk


def test_a_checkpoint_on_the_same_disk_needs_room_beside_the_cache(foretell: Foretell) -> None:
    forecast = foretell("checkpoint.save=true")
    room = replace(PLENTY, disk=int(forecast.estimate.peak("disk_bytes").disk_bytes / MARGIN) - 1)
    replace(forecast, free=room).check()
    line = refusal(forecast, replace(room, one_disk=True))
    assert "GB free on its disk with the checkpoint, which the stage 'save' takes, and" in line


def test_a_loaded_model_needs_no_room_for_its_weights(foretell: Foretell) -> None:
    forecast = on_gpu(foretell())
    weights = forecast.estimate.stages[0].device_bytes
    room = replace(PLENTY, device=forecast.estimate.peak("device_bytes").device_bytes - weights)
    refusal(forecast, room)
    replace(forecast, place=replace(forecast.place, loaded=True), free=room).check()
