"""benchmarks/gpu.py where there is no GPU: what its code does on the CPU, and what it says."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts find one another in their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("gpu", reason="not in a checkout")


@pytest.mark.slow
@pytest.mark.long
def test_every_step_of_the_gpu_benchmark_works_on_a_tiny_model(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["device"] == "cpu" and figures["torch"] == torch.__version__ and figures["date"]
    assert all(step["seconds"] > 0 and f"| {name} |" in done.stdout for name, step in figures["steps"].items())
    bare, flap, auto, probe, flap_plus = figures["steps"].values()
    assert bare["tokens"] == 16 * 128
    assert all(step["realised_ratio"] == pytest.approx(0.2, abs=0.01) for step in (flap, auto, probe, flap_plus))
    assert set(auto["device_map"].values()) == {"cpu", "disk"} and auto["plan_equal"]


def test_without_a_gpu_one_line_says_so_and_nothing_is_measured(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "gpu.json")])
    gpu.main()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("No GPU: ") and "nothing was measured" in line
    assert not list(tmp_path.iterdir())


def test_a_step_that_is_too_long_or_fails_leaves_the_others_their_figures(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless() -> dict[str, object]:
        while True:
            time.sleep(0.01)

    output = tmp_path / "gpu.json"
    table = gpu.StepTable(output, {"device": "cpu"}, deadline=time.time() + 1800)
    table.step("fails", lambda: {}["missing"])
    table.step("done", lambda: {"seconds": 1.0, "stages": {}, "peak_bytes": {"device": None, "host": None}})
    table.step("too long", endless, needs=3600)
    table.deadline = time.time() + 0.5
    table.step("longer than thought", endless)
    table.step("late", endless)
    steps = json.loads(output.read_text())["steps"]
    assert "missing" in steps["fails"]["failed"] and table.failed
    assert steps["done"]["seconds"] == 1.0
    assert "would take about 3600" in steps["too long"]["not_begun"]
    assert "the minutes were over" in steps["longer than thought"]["stopped"]
    assert "0 s are left" in steps["late"]["not_begun"]
    assert "not begun: " in capsys.readouterr().out
