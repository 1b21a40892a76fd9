"""Sweeps on a real SLURM cluster of one node, which tests/helpers/slurm_cluster.sh starts."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.forked import command_line

pytestmark = [pytest.mark.slurm, pytest.mark.long]
CLUSTER = Path(__file__).parents[1] / "helpers" / "slurm_cluster.sh"
DAEMONS = ["munged", "slurmctld", "slurmd"]
COMMANDS = ["sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", *DAEMONS]
Start = Callable[..., "subprocess.Popen[str]"]
SWEEP = [
    "-m",
    "hydra.sweep.dir=sweep",
    # The jobs ask for few resources, so that every machine can run them.
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a SLURM cluster on this machine, and return the folder of the cluster.

    While the fixture is active, SLURM's commands use this cluster.
    """
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [command for command in COMMANDS if shutil.which(command, path=places) is None]:
        required = os.environ.get("FLAP_REQUIRE_SYSTEM_TOOLS") == "1"
        (pytest.fail if required else pytest.skip)(f"not on this machine: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "start", folder], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
    subprocess.run([CLUSTER, "stop", folder], check=True)


@pytest.fixture
def arguments(base: list[str], tmp_path: Path) -> list[str]:
    return [*base, "checkpoint.save=false", f"cache_dir={tmp_path / 'cache'}"]


@pytest.fixture
def start(cluster: Path, arguments: list[str], tmp_path: Path) -> Start:
    """Return a function that starts a sweep of tiny runs in another process, in tmp_path."""

    def process(*more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "flap", *SWEEP, *arguments, *more],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return process


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def succeed(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def wait(
    sweep: "subprocess.Popen[str]", condition: Callable[[], object], seconds: float = 60
) -> None:
    """Wait until a condition is true. Fail if the sweep ends first, or if `seconds` have passed."""
    end = time.monotonic() + seconds
    while not condition():
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < end, f"nothing came in {seconds} s"
        time.sleep(0.1)


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def run_of(sweep: Path, number: int) -> Path:
    """Return the folder to which job `number` of a sweep writes."""
    [found] = sweep.glob(f"{number}_*")
    return found


def state(sweep: Path, number: int) -> str | None:
    return next((read(path)["state"] for path in sweep.glob(f"{number}_*/status.json")), None)


def job_ids(sweep: Path) -> set[str]:
    """Return the ids that SLURM gave to the finished jobs of a sweep, such as {"7_0", "7_1"}."""
    return {path.name.split("_0_result")[0] for path in (sweep / ".submitit").rglob("*_result.pkl")}


def numbers(run: Path) -> dict:
    """Return the entries of a report that must not depend on whether the run was interrupted."""
    report = read(run / "report.json")
    return {key: report[key] for key in ("evaluation", "layers", "parameters", "ratio")}


def test_a_sweep_is_one_job_array_that_calibrates_once(start: Start, tmp_path: Path) -> None:
    site = ["partition=main", "timeout_min=7", "comment=flap"]
    sweep = start("ratio=0.2,0.4", *(f"hydra.launcher.{one}" for one in site))
    wait(sweep, lambda: "ArrayTaskId" in slurm("scontrol", "show", "job"))
    job = slurm("scontrol", "show", "job").split("\n\n")[0]
    succeed(sweep)

    for expected in (
        "Partition=main",
        "TimeLimit=00:07:00",
        "JobName=flap",
        "Comment=flap",
        "NumCPUs=1",
        "mem=1G",
    ):
        assert expected in job
    folder = tmp_path / "sweep"
    scripts = {
        path.read_text() for path in (folder / ".submitit").rglob("*.sh")
    }  # each job has a copy of the same script
    assert len(scripts) == 1 and "\n#SBATCH --array=0-1%2\n" in scripts.pop()
    [array] = {job_id.split("_")[0] for job_id in job_ids(folder)}
    assert job_ids(folder) == {f"{array}_{i}" for i in range(2)}
    reports = [read(run_of(folder, i) / "report.json") for i in range(2)]
    assert [report["config"]["ratio"] for report in reports] == [0.2, 0.4]
    assert sorted(report["statistics_cache"] for report in reports) == ["hit", "miss"]


def test_the_tasks_of_a_job_are_the_processes_of_a_run(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    succeed(start("ratio=0.4", "hydra.launcher.tasks_per_node=2", "hydra.launcher.mem_gb=2"))
    report = read(run_of(folder, 0) / "report.json")
    assert len(report["processes"]) == 2 and report["ratio"]["realised_decoder"] > 0.3
    assert ",0.4," in (folder / "study.csv").read_text()


def test_a_killed_job_is_taken_up_again(
    start: Start, arguments: list[str], text_file: Path, tmp_path: Path
) -> None:
    """If a job of a sweep is killed and the command is repeated, only this job runs again."""
    folder = tmp_path / "sweep"
    long_text = tmp_path / "long.txt"
    long_text.write_text(f"{text_file.read_text()} " * 20)
    # With these options, calibration takes seconds. So the first job can be killed while it
    # calibrates, or while it waits for the second job to calibrate.
    slow = [
        f"calibration.dataset={long_text}",
        "calibration.num_samples=1000",
        "calibration.batch_size=1",
    ]
    first = start(*slow, "ratio=0.2,0.4")
    try:
        wait(first, lambda: state(folder, 0) == "running")
        array = slurm("squeue", "--noheader", "--format=%F").split()[0]
        # Kill only the run's job step, because SLURM would first send SIGTERM to a whole job.
        slurm("scancel", "--signal=KILL", f"{array}_0.0")
        wait(first, lambda: not slurm("squeue", "--noheader"))
    finally:
        # This cluster has no accounting (SLURM's database of jobs), so it does not report the
        # killed job as ended, and the command would wait forever.
        first.kill()
        first.wait()
    killed = run_of(folder, 0)
    finished = run_of(folder, 1) / "report.json"
    assert state(folder, 1) == "finished"
    assert state(folder, 0) == "running" and not (killed / "report.json").exists()
    written = finished.stat().st_mtime_ns

    succeed(start(*slow, "ratio=0.2,0.4"))
    done = command_line(
        tmp_path, *arguments, *slow, "ratio=0.2", "use_cache=false", "hydra.run.dir=undisturbed"
    )
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == written
    assert state(folder, 0) == "finished"
    assert numbers(killed) == numbers(tmp_path / "undisturbed")
