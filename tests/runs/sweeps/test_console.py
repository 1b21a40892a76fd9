"""A sweep prints a line for each cell (one run), and a table of all cells at the end."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flap.storage import write_status
from flap.storage.status import STATUS, read_state

Cli = Callable[..., "CompletedProcess[str]"]
NAME = "words.txt/perplexity@16"


def test_a_sweep_has_a_line_for_each_cell_and_a_table_at_its_end(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    done = quick_flap(*base, "-m", "metric=IFV,WIFV", "checkpoint.save=false", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    [sweep] = [path.relative_to(tmp_path) for path in tmp_path.glob("multirun_outputs/*")]

    first, second, *table = done.stdout.splitlines()
    number = r"[\d.]+ \(dense [\d.]+\), computed in \d+ s"
    assert re.fullmatch(f"cell 1 of 2, tiny_IFV_AL-AM_r0.2_s0: {NAME} {number}", first)
    assert re.fullmatch(f"cell 2 of 2, tiny_WIFV_AL-AM_r0.2_s0: {NAME} {number}", second)
    assert {len(line) for line in table} == {len(table[0])} and len(table[0]) <= 80
    # The table leaves out options that are equal in all cells. Long names are broken between words.
    heads = [set(re.findall(r"[\w./@]+", line)) for line in table[1:4]]
    assert heads[0] == {"words.txt/"} and {"perplexity", "bits_per_byte", "compute"} <= heads[1]
    assert heads[2] == {"metric", "removed", "parameters", "@16", "seconds"}
    assert sum("IFV" in line for line in table) == 2

    warning, study = done.stderr.splitlines()[1:]
    assert done.stderr.startswith(f"2 cells, in {sweep}\n")
    assert warning == f"warning: {NAME} is measured on the calibration text itself"
    assert study == f"study: {sweep}/index.html"


def test_a_sweep_can_end_at_its_first_failure(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    words = ["-m", *base, "ratio=0.99,0.2", "checkpoint.save=false", "stop_on_failure=true"]
    done = quick_flap(*words)
    assert done.returncode == 1
    assert done.stderr.count("ratio=0.99: ") == 1
    [cell] = tmp_path.glob("multirun_outputs/*/[0-9]_*")  # the second cell was not started
    assert read_state(cell) == "failed"
    stopped = (
        "stopped at the first failed cell (stop_on_failure=true); continue with: python -m flap"
    )
    assert stopped in done.stderr


def test_other_launchers_start_no_cell_after_a_failure(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    """With launchers such as joblib, a failed cell cannot end the sweep, but no later cell runs.

    These launchers may run cells in other processes, in which an error does not end the sweep.
    """
    words = ["-m", *base, "ratio=0.2,0.4", "checkpoint.save=false", "stop_on_failure=true"]
    quick = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=mine"]

    other = tmp_path / "mine" / "7_other"
    other.mkdir(parents=True)
    write_status(other, "failed", "a full disk")
    # Only failures after the start of the sweep count, so the status file gets a future time.
    os.utime(other / STATUS, (2**33, 2**33))
    done = quick_flap(*words, *quick)
    assert done.stderr.count("not started (stop_on_failure=true); failed: mine/7_other") == 2
    assert not [*tmp_path.glob("mine/*/report.json")]


NOTE = """
import json
from pathlib import Path
from hydra.experimental.callback import Callback

class Note(Callback):
    def on_job_end(self, config, job_return, **_):
        with Path("returned").open("a") as file:
            file.write(json.dumps(job_return.return_value) + "\\n")
"""


def find_modules_here() -> None:
    sys.path.insert(0, str(Path.cwd()))


@pytest.mark.parametrize(
    ("objective", "count"),
    [
        pytest.param(f"pruned/{NAME}", 1, marks=pytest.mark.long),
        (f"[pruned/{NAME},parameters/total_after]", 2),
    ],
)
def test_a_run_returns_its_objective_to_the_sweeper(
    objective: str, count: int, quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    (tmp_path / "noting.py").write_text(NOTE)
    words = ["-m", *base, "ratio=0.2,0.4", "checkpoint.save=false", f"objective={objective}"]
    noting = ["hydra/sweeper=basic", "+hydra.callbacks.note={_target_: noting.Note}"]
    done = quick_flap(*words, *noting, before=find_modules_here)
    assert done.returncode == 0, done.stderr

    returned = [json.loads(line) for line in (tmp_path / "returned").read_text().splitlines()]
    expected = []
    for file in sorted(tmp_path.glob("multirun_outputs/*/*/report.json")):
        report = json.loads(file.read_text())
        numbers = [report["evaluation"]["pruned"][NAME], report["parameters"]["total_after"]]
        expected.append(numbers[0] if count == 1 else numbers)
    assert returned == expected and len(set(map(str, returned))) == 2
