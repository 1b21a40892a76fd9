"""Two sweeps that share a cache, at the same time: what both need is computed once."""

import json
import os
import subprocess
import sys
from pathlib import Path


def start(folder: Path, cache: Path, arguments: list[str]) -> subprocess.Popen[str]:
    folder.mkdir()
    places = ["hydra.sweep.dir=sweep", f"cache_dir={cache}", "checkpoint.save=false"]
    command = [sys.executable, "-m", "flap", "-m", *arguments, *places]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def test_two_sweeps_calibrate_once_and_measure_the_dense_model_once(
    base: list[str], tmp_path: Path
) -> None:
    sweeps = [
        start(tmp_path / name, tmp_path / "cache", [*base, f"ratio={ratios}"])
        for name, ratios in (("first", "0.2,0.4"), ("second", "0.4,0.6"))
    ]
    for sweep in sweeps:
        _, errors = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, errors

    cells = [json.loads(path.read_text()) for path in tmp_path.glob("*/sweep/*/report.json")]
    assert sorted(cell["statistics_cache"] for cell in cells) == ["hit", "hit", "hit", "miss"]
    assert len({json.dumps(cell["evaluation"]["dense"]) for cell in cells}) == 1
    of_one_ratio = [cell for cell in cells if cell["ratio"]["requested"] == 0.4]
    assert of_one_ratio[0]["evaluation"] == of_one_ratio[1]["evaluation"]
    assert len(list((tmp_path / "cache" / "statistics").glob("*/entry.json"))) == 1


def test_a_killed_cell_comes_back_under_another_job_number(base: list[str], tmp_path: Path) -> None:
    """A wider sweep numbers its jobs anew. The pruned model of the killed cell is found by its key."""
    arguments = [*base, "metric=WIFV"]
    first = start(tmp_path / "first", tmp_path / "cache", [*arguments, "ratio=0.4"])
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    [cell] = (tmp_path / "first" / "sweep").glob("0_*")
    for name in ("report.json", "status.json"):  # as a kill while the report is written leaves it
        (cell / name).unlink()

    made = (cell / "pruned.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "flap", "-m", *arguments, "ratio=0.2,0.4"]
    command += ["hydra.sweep.dir=sweep", f"cache_dir={tmp_path / 'cache'}", "checkpoint.save=false"]
    done = subprocess.run(command, cwd=tmp_path / "first", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((cell / "report.json").read_text())["ratio"]["requested"] == 0.4
    assert (cell / "pruned.json").stat().st_mtime_ns == made
