"""recover=reconstruct trains only on the calibration windows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flap.data import HELD_OUT, split_windows
from flap.method.recovery import Reconstruction, distillation
from flap.results import Report
from flap.runs.preparation import prepare
from tests.helpers.runs import composed, tiny

RECONSTRUCT = [
    "recover=reconstruct",
    "recover.batch_size=1",
    "recover.epochs=4",
    "recover.learning_rate=0.015",
]
WINDOWS = ["calibration.num_samples=40", "calibration.seq_len=16"]
OPTIONS = Reconstruction(epochs=2, learning_rate=1e-4)
RunTiny = Callable[..., Report]


@pytest.mark.parametrize(
    ("num_samples", "seq_len", "batch_size", "steps"),
    [
        (64, 1024, None, 2 * 51),
        (512, 128, None, 2 * 51),
        (64, 2048, None, 2 * 51),
        (4, 128, None, 2),
        (64, 128, 1, 2 * 51),
    ],
)
def test_every_fifth_window_is_held_out(
    num_samples: int, seq_len: int, batch_size: int | None, steps: int
) -> None:
    recovery = replace(OPTIONS, batch_size=batch_size).on(num_samples, seq_len)
    assert (recovery.steps, recovery.name) == (steps, "reconstruct")
    assert recovery.held_out == len(range(0, num_samples, HELD_OUT))


def test_the_windows_are_those_of_the_calibration(
    model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    prepared = prepare(composed(*tiny(model_dir, text_file), *RECONSTRUCT, *WINDOWS), tmp_path)
    windows = prepared.texts["calibration"]
    recovery = prepared.choices.recovery
    assert recovery is not None
    assert set(prepared.texts) == {"calibration"}
    trained = distillation.training_windows(recovery, windows)
    fitting, held_out = split_windows(windows.batch)
    assert torch.equal(trained[: recovery.held_out].tokens_NT, held_out.tokens_NT)
    assert torch.equal(trained[recovery.held_out :].tokens_NT, fitting.tokens_NT)
    assert trained.mask_NT.all()


def test_a_run_is_nearer_to_the_dense_model(run_tiny: RunTiny, tmp_path: Path) -> None:
    report = run_tiny(tmp_path / "run", *RECONSTRUCT, *WINDOWS)
    assert report.recovery["choice"] == "reconstruct"
    assert report.recovery["tokens"] == 4 * 32 * 16
    assert report.recovery["nats_after"] < 0.95 * report.recovery["nats_before"]
    assert "recovery" not in report.sources
