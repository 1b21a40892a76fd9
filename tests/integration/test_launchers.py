"""Sweeps whose runs ("cells") are started in several processes, tested without a cluster.

The tests check the script that is submitted to sbatch, the log of each run, and the GPU that each
process reserves.
"""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flap.runs.sweeps.launching import claim_gpu

Cli = Callable[..., "CompletedProcess[str]"]
SITE = [
    "partition=gpu",
    "account=lab",
    "timeout_min=90",
    "gpus_per_node=2",
    "tasks_per_node=2",
    "mem_gb=64",
    "cpus_per_task=3",
]


@pytest.fixture
def refusing_cluster(tmp_path: Path) -> str:
    """Return a PATH with a fake sbatch that refuses every job.

    The fake sbatch copies the script that it gets to bin/submitted.sh.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {folder}/submitted.sh\necho "sbatch: error: Invalid '
        'partition name" >&2; exit 1\n'
    )
    (folder / "srun").write_text("#!/bin/sh\n")
    for command in folder.iterdir():
        command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def submitted(script: Path) -> dict[str, str]:
    """Return the #SBATCH options of a submission script, such as {"partition": "gpu"}."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH --")]
    pairs = (shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def folder_of(sweep: Path, number: int) -> Path:
    [found] = sweep.glob(f"{number}_*")
    return found


@pytest.mark.parametrize(
    ("launcher", "expected", "absent"),
    [
        (
            ["slurm"],
            {
                "array": "0-1%2",
                "time": "240",
                "cpus-per-task": "4",
                "mem": "16GB",
                "job-name": "flap",
            },
            {"partition", "account", "gpus-per-node", "gres"},
        ),
        (
            ["slurm", *(f"hydra.launcher.{one}" for one in SITE)],
            {
                "partition": "gpu",
                "account": "lab",
                "time": "90",
                "gpus-per-node": "2",
                "mem": "64GB",
                "cpus-per-task": "3",
            },
            {"gres"},
        ),
    ],
    ids=["slurm", "slurm with a site's values"],
)
def test_the_launchers_keys_reach_sbatch(
    quick_flap: Cli,
    tmp_path: Path,
    refusing_cluster: str,
    launcher: list[str],
    expected: dict[str, str],
    absent: set[str],
) -> None:
    first, *others = launcher
    done = quick_flap(
        "-m", f"hydra/launcher={first}", *others, "ratio=0.2,0.4", PATH=refusing_cluster
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Invalid partition name" in line
    options = submitted(tmp_path / "bin" / "submitted.sh")
    assert expected.items() <= options.items()
    assert not absent & options.keys()


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            ["hydra.launcher.gpus_per_node=4"],
            "hydra.launcher.gpus_per_node=4: expected 1, as tasks_per_node",
        ),
        (
            ["hydra.launcher.gpus_per_node=1", "hydra.launcher.tasks_per_node=4"],
            "hydra.launcher.gpus_per_node=1: expected 4, as tasks_per_node",
        ),
        (
            ["hydra.launcher.tasks_per_node=2", "model.placement=auto"],
            "model.placement=auto: expected device or stream",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_it_is_submitted(
    quick_flap: Cli, tmp_path: Path, refusing_cluster: str, asked: list[str], line: str
) -> None:
    done = quick_flap("-m", "hydra/launcher=slurm", *asked, "ratio=0.2,0.4", PATH=refusing_cluster)
    assert (
        done.returncode == 1
        and done.stderr.startswith(f"error: {line}")
        and done.stderr.count("\n") == 1
    )
    assert not [*tmp_path.glob("bin/submitted.sh"), *tmp_path.glob("multirun_outputs/*")]


def test_slurm_without_sbatch(quick_flap: Cli, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = quick_flap("-m", "hydra/launcher=slurm", "ratio=0.2,0.4", PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    cells, error = done.stderr.splitlines()
    assert cells.startswith("2 cells, in multirun_outputs/")
    assert error == (
        "error: hydra/launcher=slurm: no sbatch on this machine; expected a SLURM login node, "
        "or hydra/launcher=submitit_local or joblib"
    )


def without_wandb_server(folder: Path) -> dict[str, str]:
    """Return environment variables with which W&B finds neither an API key nor a server."""
    return {
        "HOME": str(folder / "home"),
        "NETRC": str(folder / ".netrc"),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_API_KEY": "",
    }


def assert_failed(run: Path, error: str, console: str) -> None:
    """Check that a run has failed, with its error in its log and in one line on the console."""
    assert not (run / "report.json").exists()
    assert f"ValueError: {error}" in (run / "flap.log").read_text()
    number = int(run.name.partition("_")[0])
    assert console.count(error) == 1
    assert f"error: cell {number + 1}: {error}" in console


@pytest.mark.long
def test_a_failed_run_stops_no_other(flap: Cli, base: list[str], tmp_path: Path) -> None:
    """In a sweep of three runs, the first and the last run fail, and the second run finishes.

    Each run records its results with W&B, and reserves a GPU from CUDA_VISIBLE_DEVICES. These GPUs
    do not exist, so the runs compute on the CPU.
    """
    options = [
        *base,
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweep.dir=s",
        "model.name=org/tiny",
        "tracking=wandb",
        "checkpoint.save=false",
        f"cache_dir={tmp_path / 'cache'}",
        "ratio=0.99,0.2,1.5",
    ]
    done = flap("-m", *options, CUDA_VISIBLE_DEVICES="5,7", **without_wandb_server(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    sweep = tmp_path / "s"
    failed = folder_of(sweep, 0)
    good = folder_of(sweep, 1)
    assert_failed(failed, "ratio=0.99: ", done.stderr)
    assert_failed(folder_of(sweep, 2), "ratio=1.5: ", done.stderr)
    assert (good / "report.json").is_file()

    log_of_failed = (failed / "flap.log").read_text()
    log = (good / "flap.log").read_text()
    assert "ratio=" not in log
    assert "Traceback" not in log
    logs = log_of_failed + log
    assert logs.count("GPU 5\n") == 1
    assert logs.count("GPU 7\n") == 1
    [_] = good.glob("wandb/offline-run-*")
    [_] = sweep.glob("wandb/offline-run-*")


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the sweep has two GPUs, a third process is refused.

    Each process reserves a GPU for as long as the process runs.
    """

    def claim() -> str | None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        # Without its `functools.cache`, `claim_gpu` acts as if a new process had called it.
        return claim_gpu.__wrapped__(tmp_path)

    assert {claim(), claim()} == {"5", "7"}
    with pytest.raises(
        ValueError, match=r"hydra\.launcher\.n_jobs: expected at most 2, one process for each GPU"
    ):
        claim()
