"""If the evaluation will take more than an hour, flap prints the estimated time beforehand."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from flap.results import Report
from flap.runs import outlook
from flap.runtime.agenda import Speed

WARNING = "the evaluation will take about 3.6 h, for 4 tasks"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a model that reads one token in ten seconds."""
    monkeypatch.setattr(outlook, "FEW", 0)
    monkeypatch.setattr(outlook, "measured_speed", lambda model: Speed(10.0, 100.0))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("the evaluation")]


def test_an_evaluation_of_more_than_an_hour_says_so_before_it_starts(
    slow: None,
    run_tiny: Callable[..., Report],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both models, dense and pruned, read 320 tokens with each of the two window lengths.
    arguments = ["eval.perplexity.seq_len=[16,32]", "checkpoint.save=false"]
    places = [f"cache_dir={tmp_path / 'cache'}"]
    measured_when_told = []

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("the evaluation"):
            measured_when_told.append((tmp_path / "run" / "evaluation.json").exists())
        return True

    caplog.handler.addFilter(note)
    run_tiny(tmp_path / "run", *arguments, *places)
    assert [line.partition(";")[0] for line in told(caplog)] == [WARNING]
    assert measured_when_told == [False]

    # The second run finds the measured results of the dense model in the cache, so it measures only
    # the pruned model.
    caplog.clear()
    run_tiny(tmp_path / "other", *arguments, *places, "ratio=0.2")
    assert told(caplog) == ["the evaluation will take about 1.8 h, for 2 tasks"]
    caplog.clear()
    run_tiny(tmp_path / "other", *arguments, *places, "ratio=0.2")
    assert told(caplog) == []


def test_a_short_one_does_not(
    run_tiny: Callable[..., Report],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlook, "FEW", 0)
    run_tiny(tmp_path / "run", "checkpoint.save=false", f"cache_dir={tmp_path / 'cache'}")
    assert told(caplog) == []
