"""`flap doctor` prints one line for each group of facts about the machine, such as devices."""

import os
import pwd
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flap.commands.doctor import cache, main, unmet
from tests.helpers.forked import command_line


def test_one_line_for_each(tmp_path: Path) -> None:
    done = command_line(
        tmp_path, "doctor", FLAP_CACHE_DIR=str(tmp_path / "cache"), WANDB_API_KEY=""
    )
    said = {line[:10].strip(): line[10:] for line in done.stdout.splitlines()}
    assert (done.returncode, done.stderr) == (0, "")
    assert list(said) == ["versions", "devices", "extras", "cache", "W&B"]
    assert (
        "torch " in said["versions"]
        and " cores, " in said["devices"]
        and "mlflow " in said["extras"]
    )
    assert said["cache"].startswith(f"{tmp_path / 'cache'}, ") and not (tmp_path / "cache").exists()
    assert said["W&B"].startswith("offline; online after `wandb login`")


def test_help_runs_no_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m flap doctor")


def test_a_cache_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cache().startswith(
        f"problem: {tmp_path / 'file' / 'cache'} cannot be written; set FLAP_CACHE_DIR"
    )


def test_a_cache_that_cannot_be_a_path_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAP_CACHE_DIR", "y" * 5000)
    line = cache()
    assert line.startswith("problem: FLAP_CACHE_DIR=yyy") and "y" * 200 not in line
    assert line.endswith(": must be at most 3,000 bytes long, but has 5,000 bytes")


def homeless() -> None:
    os.environ.pop("HOME")
    pwd.getpwuid = lambda number: {}[number]  # type: ignore[assignment] - simulates a user without an entry


def test_a_user_without_a_home_is_told_to_name_a_cache(tmp_path: Path) -> None:
    done = command_line(
        tmp_path, "doctor", before=homeless, FLAP_CACHE_DIR="", XDG_CACHE_HOME="", WANDB_API_KEY=""
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "cache     problem: cache_dir: set FLAP_CACHE_DIR to a folder (" in done.stdout


def test_what_is_missing_or_too_old_is_named() -> None:
    asked = [Requirement(line) for line in ("torch<1", "torch>=2", "no-such-package>=1")]
    assert unmet(asked) == ["'torch<1'", "'no-such-package>=1'"]
