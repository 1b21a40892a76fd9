"""The command line does single runs and sweeps, and shows help and configs."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from omegaconf import OmegaConf

from flap import load as loaded
from flap.cli import main
from flap.config import config_dir
from flap.storage import read_state
from tests.helpers.permissions import bound_by_permissions

Cli = Callable[..., "CompletedProcess[str]"]


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


FILES_OF_A_RUN = {
    "report.json",
    "report.md",
    "plan.json",
    "layers.png",
    "flap.log",
    ".hydra/config.yaml",
    "checkpoint/config.json",
    "checkpoint/model.safetensors",
    "checkpoint/flap.json",
}
SHOWN_OF_A_RUN = [
    "dense",
    "pruned",
    "words.txt/perplexity@16",
    "words.txt/bits_per_byte@16",
    "parameters",
    "ratio removed",
    "seconds",
]
SAME_TEXT = "words.txt/perplexity@16 is measured on the calibration text itself"


def assert_all_files(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert names >= FILES_OF_A_RUN
    assert not list(run.rglob(".checkpoint*"))
    assert OmegaConf.load(run / ".hydra" / "config.yaml").ratio == 0.5
    assert (run / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert SAME_TEXT in (run / "report.md").read_text()
    assert loaded(run).num_parameters() == loaded(run / "checkpoint").num_parameters()


def assert_report(run: Path) -> None:
    report = report_of(run)
    assert report["checkpoint"] == str(run / "checkpoint")
    assert report["warnings"] == [SAME_TEXT]
    numbers = {"words.txt/perplexity@16", "words.txt/bits_per_byte@16"}
    assert report["evaluation"]["dense"].keys() == numbers
    assert report["evaluation"]["pruned"].keys() == numbers

    ratio = report["ratio"]
    # One KV head with its query heads has this share of the parameters in the tiny model's decoder.
    one_head = 1536 / 46080
    assert ratio["requested"] == 0.5
    assert abs(ratio["realised_decoder"] - 0.5) < one_head
    plan = json.loads((run / "plan.json").read_text())
    neurons = [len(layer["neurons"]) for layer in plan["layers"]]
    assert [layer["neurons"] for layer in report["layers"]] == neurons


def assert_console(done: "CompletedProcess[str]", run: Path) -> None:
    assert f"warning: {SAME_TEXT}" in done.stderr
    assert "[transformers]" not in done.stderr  # no warnings of transformers on the console
    # The console must not show the whole config.
    assert "_target_: " not in done.stdout + done.stderr
    for word in SHOWN_OF_A_RUN:
        assert word in done.stdout
    # Each path is on one line of its own, even if the console is narrow.
    assert done.stdout.splitlines()[-2:] == [str(run / "checkpoint"), str(run / "report.md")]


def test_a_run_leaves_its_report_checkpoint_and_log(
    flap: Cli, base: list[str], tmp_path: Path
) -> None:
    done = flap(*base, "ratio=0.5")
    assert done.returncode == 0, done.stderr
    run = only(tmp_path, "outputs/*/*")
    assert run.name.endswith("_tiny_WIFV_AL-AM_r0.5_s0")
    assert_all_files(run)
    assert_report(run)
    assert_console(done, run)


def test_a_failed_job_leaves_the_others_alone(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    done = quick_flap("-m", *base[:-2], "ratio=0.99,0.2", "checkpoint.save=false", "eval=[none]")
    assert done.returncode == 1
    bad, good = (only(tmp_path, f"multirun_outputs/*/{i}_*") for i in (0, 1))
    assert (good / "report.json").is_file() and "Traceback" not in (good / "flap.log").read_text()
    assert not (bad / "report.json").exists()
    assert (read_state(good), read_state(bad)) == ("finished", "failed")
    assert json.loads((bad / "status.json").read_text())["error"].startswith("ratio=0.99: ")
    log = (bad / "flap.log").read_text()
    assert "Traceback" in log and "ValueError: ratio=0.99" in log
    assert (
        done.stderr.count("error: cell 1 of 2: ratio=0.99") == 1
        and done.stderr.count("ratio=0.99: ") == 1
        and "Traceback" not in done.stderr + done.stdout
    )


@pytest.mark.long
def test_a_finished_run_in_a_folder_that_cannot_be_written_is_done_already(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    arguments = [*base, "checkpoint.save=false", "hydra.run.dir=run"]
    assert quick_flap(*arguments).returncode == 0
    (tmp_path / "run").chmod(0o500)
    done = quick_flap(*arguments, before=bound_by_permissions)
    assert done.returncode == 0, done.stderr
    assert "done already, in " in done.stderr
    again = quick_flap(*arguments, "resume=false", before=bound_by_permissions)
    line = f"error: hydra.run.dir={tmp_path / 'run'}: this folder cannot be written; name another"
    assert again.returncode == 1 and line in again.stderr


def ascii_console() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr] - simulates PYTHONIOENCODING


def test_a_console_without_all_characters_costs_no_run(quick_flap: Cli, base: list[str]) -> None:
    done = quick_flap(*base, "checkpoint.save=false", before=ascii_console)
    assert done.returncode == 0, done.stderr


def test_help_names_every_choice_of_every_group(flap: Cli) -> None:
    done = flap("--help")
    assert done.returncode == 0, done.stderr
    for group in (
        path for path in Path(config_dir()).iterdir() if path.is_dir() and path.name != "hydra"
    ):
        [line] = re.findall(rf"^{group.name} +\w.*: (.*)$", done.stdout, re.MULTILINE)
        assert line.split(", ") == sorted(path.stem for path in group.glob("[!_]*.yaml"))
    assert "--cfg job" in done.stdout


@pytest.fixture
def python_path(tmp_path: Path) -> str:
    """Return a PYTHONPATH with which a process prints at its end whether it imported torch."""
    loaded_at_exit = "print('loaded:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, sys\natexit.register(lambda: {loaded_at_exit})"
    )
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def test_a_launcher_without_m_is_refused_without_torch(flap: Cli, python_path: str) -> None:
    done = flap("hydra/launcher=slurm", PYTHONPATH=python_path)
    assert done.returncode == 1 and "write: python -m flap -m" in done.stderr
    assert done.stdout == "loaded: []\n"


def test_cfg_job_answers_without_torch(flap: Cli, python_path: str, tmp_path: Path) -> None:
    done = flap("--cfg", "job", "ratio=0.35", PYTHONPATH=python_path)
    assert done.returncode == 0, done.stderr
    config, loaded = done.stdout.split("loaded:")
    assert loaded.strip() == "[]"
    assert "${" not in config  # all interpolations are resolved
    assert OmegaConf.create(config).ratio == 0.35
    assert not (tmp_path / "outputs").exists()


def test_the_command_finds_modules_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`main` adds the current folder to `sys.path`, because Python does not do so for a script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["flap", "--version"])
    main()
    assert sys.path[0] == str(tmp_path)
