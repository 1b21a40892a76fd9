"""After Ctrl-C, the console shows a command, and this command continues the run or the sweep."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flap.runs.sweeps.callbacks import StudyCallback
from flap.runs.sweeps.continuing import interrupted_line
from flap.storage.status import read_state

Cli = Callable[..., "CompletedProcess[str]"]
CONTINUE = "interrupted; continue with: python -m flap "


def wait_for(folder: Path, pattern: str) -> None:
    while not [*folder.glob(pattern)]:
        time.sleep(0.01)


def command_in(stderr: str) -> list[str]:
    """Return the arguments of the command that the console shows after Ctrl-C."""
    [line] = [line for line in stderr.splitlines() if line.startswith(CONTINUE)]
    return shlex.split(line.removeprefix(CONTINUE))


@pytest.mark.long
def test_a_run_continues_with_the_command_that_ctrl_c_prints(
    base: list[str], quick_flap: Cli, tmp_path: Path
) -> None:
    arguments = [*base, "run_name=mine", "checkpoint.save=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flap", *arguments],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path, "outputs/*/*/status.json")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr

    again = command_in(stderr)
    [run] = tmp_path.glob("outputs/*/*")
    assert again == [*arguments, f"hydra.run.dir={run.relative_to(tmp_path)}"]
    assert read_state(run) == "interrupted"
    assert quick_flap(*again).returncode == 0
    assert [*tmp_path.glob("outputs/*/*")] == [run] and read_state(run) == "finished"


def interrupt_when(pattern: str) -> None:
    """Send Ctrl-C to this process as soon as there is a file that matches the pattern."""

    def interrupt() -> None:
        wait_for(Path.cwd(), pattern)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()


@pytest.mark.long
def test_a_sweep_continues_with_the_command_that_ctrl_c_prints(
    base: list[str], quick_flap: Cli, tmp_path: Path
) -> None:
    arguments = ["-m", *base, "ratio=0.2,0.4", "checkpoint.save=false"]
    second_cell = "multirun_outputs/*/1_*/status.json"
    done = quick_flap(*arguments, before=partial(interrupt_when, second_cell))
    assert done.returncode == 130, done.stderr
    again = command_in(done.stderr)
    [sweep] = tmp_path.glob("multirun_outputs/*")
    assert again == [*arguments, f"hydra.sweep.dir={sweep.relative_to(tmp_path)}"]

    done = quick_flap(*again)
    assert done.returncode == 0 and "done already" in done.stdout
    assert [read_state(run) for run in sweep.glob("[01]_*")] == ["finished", "finished"]


def test_the_command_is_quoted_and_has_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my sweep (1)"
    uri = "tracking.uri=http://me:s3cret-word@host"
    sweep = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    monkeypatch.setattr(StudyCallback, "open_sweep", sweep)
    monkeypatch.setattr(sys, "argv", ["flap", "-m", "seed=0,1", "hydra.sweep.dir=old", uri])
    *words, last = command_in(interrupted_line())
    assert words == ["-m", "seed=0,1", "tracking.uri=http://host"]
    override = OverridesParser.create().parse_override(last)
    assert override.key_or_group == "hydra.sweep.dir" and override.value() == str(folder)
