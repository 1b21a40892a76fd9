"""Passes, tokens and operations: by hand on the tiny model, and as real runs count them.

The tiny model: 4 layers, hidden size 32, 8 query heads over 4 KV heads of 8, 56 neurons, vocabulary 96.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import flap
from flap.compression.linear import fit_operations
from flap.models import adapt
from flap.pipeline import stages
from flap.results import Report
from flap.runs import operations
from flap.runs.forecast import Forecast
from flap.runs.prepare import prepare
from tests.cases import tiny_model, tokens
from tests.helpers.runs import composed, tiny
from tests.runs.conftest import Foretell

ATTENTION, MLP = 32 * 64 + 2 * 32 * 32 + 64 * 32, 3 * 32 * 56
A_TOKEN = 4 * (2 * (ATTENTION + MLP) + 4 * 16 * 64)  # the layers; two products of 16 tokens with 64 channels each
CHOICES = [
    "method=flap", "compensation=linear", "metric=OBS", "metric=OBS compensation=linear", "method=wanda_sp",
    "method=wanda_sp compensation=linear", "method=mag_sp", "structure=search", "method=flap_plus",
    "method=flap model.placement=stream", "method=flap_plus model.placement=stream",
]  # fmt: skip


def stage(forecast: Forecast, name: str) -> Any:
    [found] = [one for one in forecast.estimate.stages if one.stage == name]
    return found


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_goes_over_the_weights_as_often_as_estimated(
    choice: str, foretell: Foretell, run_tiny: Callable[..., Report], tmp_path: Path
) -> None:
    arguments = [*choice.split(), "calibration.num_samples=6", "ratio=0.4"]
    report = run_tiny(tmp_path / "run", *arguments, "use_cache=false", "checkpoint.save=true")
    expected = foretell(*arguments).estimate
    pruning = sum(one.passes for one in expected.stages if one.stage not in ("load", "save", "evaluate"))
    assert report.weight_passes == pruning
    timed = {name for name in report.seconds if name not in ("total", "evaluate") and report.seconds[name]}
    assert timed - {"calibrate"} <= {one.stage for one in expected.stages}


def test_flap_runs_all_windows_once(foretell: Foretell) -> None:
    forecast = foretell("method=flap")
    calibrate, score, compress = (stage(forecast, name) for name in ("calibrate", "score", "compress"))
    assert (calibrate.passes, calibrate.tokens, calibrate.operations) == (1, 8 * 16, 8 * 16 * A_TOKEN)
    assert (score.passes, score.tokens) == (compress.passes, compress.tokens) == (1, 0)


def test_a_training_runs_both_models(foretell: Foretell) -> None:
    """20 steps of 2 windows of 8 tokens, evaluated before, at the beginning, at the end and after."""
    options = ["recover.seq_len=8", "recover.batch_size=2", "recover.tokens=320", "ratio=0.4"]
    full, lora = (foretell("method=flap", f"recover={name}", *options) for name in ("full", "lora"))
    for forecast, backward in ((full, 2), (lora, 1)):
        found, measured = stage(forecast, "recover"), 32 * 8 * 4
        assert (found.passes, found.tokens) == (20 * (2 + backward), 320 * (2 + backward) + 2 * measured)
        assert stage(forecast, "evaluate").passes == 3 * 1
        assert forecast.estimate.left_out == ()
    [before] = [one for one in full.estimate.stages if one.stage == "compress"]
    trained = 4 * (ATTENTION + MLP + 2 * 32) - 0.4 * full.place.shapes.prunable
    assert stage(full, "recover").disk_bytes - before.disk_bytes == pytest.approx(7 * 4 * trained)
    assert stage(lora, "recover").operations < stage(full, "recover").operations
    more = stage(foretell("method=flap", "recover=full", *options, "recover.gradient_checkpointing=true"), "recover")
    assert more.operations > stage(full, "recover").operations


def test_a_reconstruction_runs_both_models_on_the_calibration_windows(foretell: Foretell) -> None:
    """6 of 8 windows of 16 tokens in 3 epochs, evaluated on the other two before, after 0, 8, 16 and 18, and after."""
    forecast = foretell("method=flap", "recover=reconstruct", "recover.batch_size=1", "recover.epochs=3", "ratio=0.4")
    found, measured = stage(forecast, "recover"), 2 * 16 * 6
    assert (found.passes, found.tokens) == (3 * 6 * (2 + 2), 3 * 6 * 16 * (2 + 2) + 2 * measured)
    assert stage(forecast, "evaluate").passes == 3 * 1


def test_the_streams_of_a_search_fork_at_each_layer(foretell: Foretell) -> None:
    levels = ["structure.levels=[0.125,0.25,0.5,0.75]", "structure.tokens=32"]
    score = stage(foretell("method=flap_plus", "calibration.num_samples=8", *levels), "score")
    alone = 8 * 16 + 32 * (8 + 15 + 22 + 29) / 4  # all windows; 2 held-out windows, 3 + 4 trials a layer
    assert (score.passes, score.tokens) == (1, alone)
    # half of its outputs are there before the last layer: 22 + 29 streams, and fitting and held-out windows twice
    assert score.cache_bytes == ((22 + 29) * 32 + 2 * 8 * 16) * 32 * 4


def test_a_forward_pass_takes_the_operations_that_torch_counts(foretell: Foretell) -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation("eager")  # of whose products torch takes notice
    decoder = adapt(model).decoder
    with FlopCounterMode(display=False) as counter:
        decoder(input_ids=tokens(8, 16), use_cache=False)
    assert stage(foretell("method=flap"), "calibrate").operations == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError])
def test_where_a_model_does_not_run_without_values_its_operations_are_those_of_its_weights(
    error: type[Exception], foretell: Foretell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise error("values")

    monkeypatch.setattr(operations, "COUNTS", {})
    monkeypatch.setattr(operations, "FlopCounterMode", fail)
    found = stage(foretell("method=flap"), "calibrate").operations
    assert found == 8 * 16 * 4 * 2 * (ATTENTION + MLP + 2 * 32)  # and norms


def test_a_run_does_not_count_operations(
    model_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "COUNTS", counts := {})
    prepare(composed(*tiny(model_dir, text_file), f"cache_dir={tmp_path}"), tmp_path, stages=stages)
    assert not counts


def test_a_linear_fit_is_one_factor_and_a_triangular_solve() -> None:
    cross, solve = 2 * 5 * 3 * 9, 5 * 9**2  # three channels are removed
    assert fit_operations(12, 5, 1, kept=0.75) == pytest.approx(12**3 / 3 + cross + solve)
    assert fit_operations(12, 5, 0, kept=0.75) == 0


@pytest.mark.parametrize("method", ["flap", "flap_plus"])
def test_as_many_tokens_pass_each_layer_as_estimated(
    method: str, foretell: Foretell, tokenizer: Any, text_file: Path
) -> None:
    model, seen = tiny_model("llama-gqa"), [0]

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[0] += args[0].shape[0] * args[0].shape[1]

    for layer in model.model.layers:  # inside the layers, whose own call is also replaced by that of the walk
        layer.input_layernorm.register_forward_pre_hook(count)
    windows = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
    flap.prune(model, tokenizer, method=method, **windows)
    estimated = foretell(f"method={method}", "calibration.num_samples=8").estimate
    total = sum(one.tokens for one in estimated.stages if one.stage in ("calibrate", "score", "allocate", "compress"))
    assert seen[0] / 4 <= total  # plans that agree on the first layers share their stream
    assert seen[0] / 4 == pytest.approx(total, rel=0.05)
