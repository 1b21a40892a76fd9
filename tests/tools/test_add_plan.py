"""`python tools/add_plan.py` copies the plan and the report of a run, or refuses the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from add_plan import add

from flap.results import Report


@pytest.fixture
def finished(run_tiny: Callable[..., Report], tmp_path: Path) -> Path:
    """Create a run whose report names a hub model, and a git commit without local changes."""
    folder = tmp_path / "run"
    run_tiny(folder)
    report = Report.load(folder / "report.json")
    report.config["model"]["path"] = "org/tiny"
    report.config["calibration"]["dataset"] = "words.txt"
    report.config["eval"]["perplexity"]["datasets"] = ["words.txt"]
    report.sources = {}
    report.git = {"commit": "abc", "dirty": False}
    report.save(folder / "report.json")
    return folder


def test_plan_and_report_are_copied_to_their_places(finished: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    assert add(finished, plans) == "tiny/flap-0.4"
    copied = plans / "tiny" / "flap-0.4.json"
    assert copied.read_bytes() == (finished / "plan.json").read_bytes()
    before = json.loads((finished / "report.json").read_text())
    after = json.loads((plans / "tiny" / "reports" / "flap-0.4.json").read_text())
    assert after == before | {"checkpoint": None}


def test_a_report_that_others_cannot_read_is_refused(finished: Path, tmp_path: Path) -> None:
    report = Report.load(finished / "report.json")
    report.sources = {"model": "/home/me/model.gguf"}
    report.save(finished / "report.json")
    with pytest.raises(ValueError, match=r"^sources.model=/home/me/model.gguf: is a path of this"):
        add(finished, tmp_path / "plans")
    report.git["dirty"] = True
    report.save(finished / "report.json")
    with pytest.raises(ValueError, match="the checkout has changes"):
        add(finished, tmp_path / "plans")
    assert not (tmp_path / "plans").exists()
