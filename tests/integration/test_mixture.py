"""Complete runs that calibrate or train on text that the model generates itself.

In some runs, this text is mixed with other texts.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flap.data import read_text
from flap.method.allocation import PruningPlan
from flap.results import Report, markdown
from tests.helpers.killed import start

Run = Callable[..., Report]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flap.method.calibration.own_text.SEQ_LEN", 48)


def mixture(text_file: Path) -> list[str]:
    return [
        f"calibration.dataset={{{text_file}: 1, self: 2}}",
        "calibration.seq_len=16",
        "method=flap_plus",
    ]


def test_a_mixture_is_run_and_its_own_text_kept(
    run_tiny: Run, text_file: Path, tmp_path: Path
) -> None:
    options = [*mixture(text_file), f"cache_dir={tmp_path / 'cache'}", "calibration.num_samples=24"]
    report = run_tiny(tmp_path / "run", *options)
    assert (
        report.own_text["calibration"]["cache"] == "miss"
        and report.own_text["calibration"]["begins_with"] == "BOS"
    )
    assert (
        str(text_file) in report.sources["calibration"]
        and "written by the model" in report.sources["calibration"]
    )
    assert report.weight_passes <= 6
    again = run_tiny(tmp_path / "again", *options)
    assert again.own_text["calibration"]["cache"] == "hit"
    plans = [PruningPlan.load(tmp_path / name / "plan.json") for name in ("run", "again")]
    assert plans[0] == plans[1]
    written = read_text(str(tmp_path / "run" / "self_calibration.jsonl"), "calibration", "f")
    assert len(written.documents) > 3
    assert (
        f"{report.own_text['calibration']['tokens']:,} tokens of its calibration text"
        in markdown(report)
    )
    stages = json.loads((tmp_path / "run" / "report.json").read_text())
    assert stages["own_text"] == report.own_text


def test_a_measurement_on_text_that_the_model_wrote_to_calibrate_on_is_told(
    run_tiny: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["calibration.dataset=self", f"cache_dir={tmp_path / 'cache'}"]
    run_tiny(tmp_path / "first", *options)
    own = tmp_path / "first" / "self_calibration.jsonl"
    caplog.clear()
    report = run_tiny(tmp_path / "second", *options, f"eval.perplexity.datasets=[{own}]")
    line = "self_calibration.jsonl/perplexity@16 is measured on the calibration text itself"
    assert report.warnings == [line] and [one.message for one in caplog.records].count(line) == 1
    assert report.domains == {"self_calibration.jsonl/perplexity@16": "calibration"}


def test_what_is_trained_on_may_be_the_models_own_text(
    run_tiny: Run, text_file: Path, tmp_path: Path
) -> None:
    options = ["recover=full", "recover.tokens=640", "recover.seq_len=16", "recover.dataset=self"]
    report = run_tiny(tmp_path / "run", *options, f"cache_dir={tmp_path / 'cache'}")
    assert (
        set(report.own_text) == {"recovery"}
        and report.own_text["recovery"]["tokens"] >= 640 + 32 * 16
    )
    assert (tmp_path / "run" / "self_recovery.jsonl").is_file()
    assert report.recovery["nats_after"] <= report.recovery["nats_before"]
    assert "not training-free" in markdown(report)


@pytest.mark.long
@pytest.mark.parametrize("damaged", [[], ["batch-0"]], ids=["whole", "damaged"])
def test_a_run_killed_while_the_model_writes_goes_on_with_the_next_batch(
    damaged: list[str], base: list[str], tmp_path: Path
) -> None:
    """A killed run, when resumed, reuses the batches of text that the model has already generated.

    If the file of a batch is damaged, the model generates this batch again.
    """
    inputs = [one for one in base if not one.startswith(("eval", "calibration.dataset"))]
    arguments = [
        *inputs,
        "calibration.dataset=self",
        "calibration.num_samples=100",
        "eval=[none]",
        "ratio=0.4",
        "cache_dir=cache",
    ]
    code, steps = start(tmp_path / "whole", arguments)
    batches = steps.count("sample")
    assert code == 0 and batches > 3
    assert start(tmp_path / "killed", arguments, "sample", 3) == (-signal.SIGKILL, ["sample"] * 3)
    for name in damaged:
        [note] = (tmp_path / "killed" / "cache" / "streams").rglob(name)
        note.write_text("")
    code, steps = start(tmp_path / "killed", arguments)
    noted = 2 - len(damaged)  # the run was killed before it recorded the third batch
    assert code == 0 and steps.count("sample") == batches - noted
    written, again = (
        (tmp_path / name / "run" / "self_calibration.jsonl").read_text()
        for name in ("whole", "killed")
    )
    assert written == again
    assert not [
        path
        for path in (tmp_path / "killed" / "cache" / "streams").iterdir()
        if path.suffix != ".lock"
    ]
