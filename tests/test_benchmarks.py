"""Every step of benchmarks/gpu.py also works on a machine without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.long
def test_every_step_of_the_gpu_benchmark_works_on_a_tiny_model(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["device"] == "cpu" and figures["torch"] == torch.__version__ and figures["date"]
    assert all(
        step["seconds"] > 0 and f"| {name} |" in done.stdout
        for name, step in figures["steps"].items()
    )
    bare, flap, auto, probe, flap_plus = figures["steps"].values()
    assert bare["tokens"] == 16 * 128
    assert all(
        step["realised_ratio"] == pytest.approx(0.2, abs=0.01)
        for step in (flap, auto, probe, flap_plus)
    )
    assert set(auto["device_map"].values()) == {"cpu", "disk"} and auto["plan_equal"]
