"""The memory of the stages: what is alive grows with what it is made of, and with nothing else."""

from dataclasses import replace

import pytest
import torch

from flap.runs.estimate import Estimate, StageEstimate
from flap.runs.free_memory import PROCESS_BYTES
from tests.runs.conftest import Foretell


def stage(estimated: Estimate, name: str) -> StageEstimate:
    [found] = [one for one in estimated.stages if one.stage == name]
    return found


WEIGHTS = 96 * 32 + 32 + 4 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 56 + 2 * 32)  # tied embeddings, norms


def test_the_whole_model_is_on_the_device_or_one_layer_of_it(foretell: Foretell) -> None:
    assert stage(foretell().estimate, "load").device_bytes == 4 * WEIGHTS
    streamed = foretell("model.placement=stream").estimate
    assert stage(streamed, "load").device_bytes == 0
    layer, hidden = (WEIGHTS - 96 * 32 - 32) // 4, 8 * 16 * 32
    assert stage(streamed, "score").device_bytes == 4 * (layer + 2 * 32 * 64)  # and o_proj twice in float32
    assert stage(streamed, "calibrate").cache_bytes == 2 * 4 * hidden
    assert stage(streamed, "compress").cache_bytes == pytest.approx(4 * (hidden + 4 * (0.8 * (layer - 64) + 64)), abs=4)


def test_what_a_cpu_maps_into_memory_need_not_be_there(foretell: Foretell) -> None:
    mapped = stage(foretell().estimate, "calibrate")
    assert mapped.resident_bytes - mapped.host_bytes == 4 * (WEIGHTS - 96 * 32 - 32)
    cast = stage(foretell("model.dtype=bfloat16").estimate, "calibrate")
    assert cast.resident_bytes == cast.host_bytes == PROCESS_BYTES + cast.device_bytes


def test_a_gpu_has_its_own_memory(foretell: Foretell) -> None:
    forecast = foretell("method=flap_plus")
    gpu = replace(forecast.place, device=torch.device("cuda"))
    on_cpu, on_gpu = forecast.estimate, replace(forecast, place=gpu).estimate
    for ours, theirs in zip(on_cpu.stages, on_gpu.stages, strict=True):
        assert ours.device_bytes == theirs.device_bytes
    score = stage(on_gpu, "score")
    assert score.host_bytes == PROCESS_BYTES  # hidden states of the windows are in files


def test_placement_auto_shares_the_weights_out(foretell: Foretell) -> None:
    forecast = foretell()
    gpu = replace(forecast.place, device=torch.device("cuda"), device_limit=1000, host_limit=2000)
    load = stage(replace(forecast, place=gpu).estimate, "load")
    assert (load.device_bytes, load.host_bytes - PROCESS_BYTES) == (1000, 2000)
    assert load.cache_bytes == 4 * WEIGHTS - 3000


def test_covariances_grow_with_the_square_of_the_channels(foretell: Foretell) -> None:
    plain, covariances = (stage(foretell(f"metric={name}").estimate, "score") for name in ("WIFV", "OBS"))
    assert covariances.device_bytes - plain.device_bytes > 4 * 2 * (64**2 + 56**2)
