"""Check Hydra's launchers, and support runs and sweeps that have several processes.

With the launcher joblib, each process of a sweep reserves one GPU. If a single run has several
processes, only rank 0 of this run logs and writes files.
"""

import atexit
import logging
import os
import shlex
import shutil
import sys
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

from hydra.types import RunMode

from flap.config import require
from flap.runtime import ranks
from flap.runtime.ranks import LostError
from flap.storage import read_state
from flap.storage.locks import file_lock
from flap.storage.status import note_failure

log = logging.getLogger(__name__)

# The lock of the GPU that this process uses. The lock is held until the process ends, because a
# process cannot change its GPU after CUDA has started.
_claimed = ExitStack()


def check_launcher(hydra: Any) -> None:
    """Refuse a launcher such as SLURM for a single run.

    Hydra uses launchers only with the option -m. Without -m, Hydra would start the run on this
    machine, which may be the login node of a cluster.

    hydra: the section `hydra` of the config.
    """
    name = hydra.runtime.choices.get("hydra/launcher", "basic")
    if hydra.mode == RunMode.RUN and name != "basic":
        command = shlex.join(["python", "-m", "flap", "-m", *sys.argv[1:]])
        raise ValueError(
            f"hydra/launcher={name}: without -m the run starts on this machine; write: {command}"
        )


def check_jobs(launcher: Any, over_gpus: str) -> None:
    """Check that the launcher's numbers of processes and GPUs suit the option `model.placement`.

    launcher: the section `hydra.launcher`. over_gpus: the option `model.placement`.

    Raises:
        ValueError: the options cannot be combined. The message names the field, its value and what
            is allowed.
    """
    tasks = launcher.get("tasks_per_node") or 1
    if over_gpus == "auto":  # a process with model.placement=auto takes all GPUs of its job
        processes = tasks * (launcher.get("nodes") or 1)
        allowed = "device or stream with tasks_per_node or nodes > 1"
        require(processes == 1, "model.placement", over_gpus, allowed)
        return

    gpus = launcher.get("gpus_per_node") or tasks
    allowed = f"{tasks}, as tasks_per_node: each cell is a job, each process of it takes one GPU"
    require(gpus == tasks, "hydra.launcher.gpus_per_node", gpus, allowed)


def make_jobs_private(launcher: Any) -> None:
    """Let only the current user read the files that submitit stores for jobs.

    These files contain the pickled config with its secrets.
    """
    folder = _submitit_folder(launcher)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


def remove_finished_jobs(launcher: Any) -> None:
    """Remove the pickle files that submitit has written for jobs that have ended.

    The files of all other jobs stay, because these jobs still need them.
    """
    folder = _submitit_folder(launcher)
    results = [] if folder is None else list(folder.rglob("*_result.pkl"))
    for result in results:
        for path in result.parent.glob("*.pkl"):
            path.unlink(missing_ok=True)


def _submitit_folder(launcher: Any) -> Path | None:
    """Return the folder in which submitit creates a folder for each job.

    Return None if the launcher does not use submitit.
    """
    # the folder of one job, such as multirun_outputs/TIME/.submitit/%j, where %j stands for the
    # job's id
    of_jobs = launcher.get("submitit_folder")
    return Path(str(of_jobs).partition("%")[0]) if of_jobs else None


@cache
def claim_gpu(sweep: Path) -> str | None:
    """Reserve a GPU that no other process of the sweep uses, and return the name of the GPU.

    This process then sees only the reserved GPU, so call this function before CUDA starts.

    The GPU is one of the GPUs in CUDA_VISIBLE_DEVICES, or any GPU of the machine if this variable
    is not set. If fewer than two GPUs can be chosen, do nothing and return None.

    Raises:
        ValueError: there are more processes than GPUs, or the file system of the folder `sweep` has
            no file locks.
    """
    names = _visible_gpus()
    if len(names) < 2:
        return None
    for name in names:
        state = _claimed.enter_context(file_lock(sweep / f".gpu-{name}.lock", None))
        if state == "held":
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return name
        if state == "none":
            raise ValueError(
                f"hydra.sweep.dir={sweep}: the disk has no file locks, which processes need to "
                "share GPUs; choose a folder on another disk, or hydra.launcher.n_jobs=1"
            )
    raise ValueError(
        f"hydra.launcher.n_jobs: expected at most {len(names)}, one process for each GPU"
    )


def _visible_gpus() -> list[str]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES; the indices of all GPUs if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch  # imported here because --help and --cfg should not wait seconds for torch

    # `device_count` asks NVML, so it does not start CUDA
    return [str(i) for i in range(torch.cuda.device_count())]


@cache
def follow() -> None:
    """Silence a process that is not rank 0, and keep it from writing Hydra's output files."""
    if ranks.is_first():
        return
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    unused = Path(gettempdir()) / f"flap-rank-{uuid4()}"  # a temporary folder for Hydra's files
    atexit.register(shutil.rmtree, unused, ignore_errors=True)
    sys.argv += [
        "hydra.run.dir=.",
        f"hydra.sweep.dir={unused}",
        "hydra.sweep.subdir=.",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        "~hydra.callbacks.study",
    ]


def end_alone(error: Exception, line: str, run_dir: Path | None) -> None:
    """Log the error with which this process has failed, and end this process at once.

    This process does not wait for the other processes of the run, which may still be working.
    Nothing is logged if this process has failed only because another process has failed.

    error: the error. line: the error in one line.
    """
    another_failed = run_dir and isinstance(error, LostError) and read_state(run_dir) == "failed"
    if run_dir and not another_failed:
        line = f"{ranks.name()}: {line}"
        note_failure(run_dir, line)
        log.exception("%s", line)
        if not ranks.is_first():  # only rank 0 logs
            print(f"error: {line}", file=sys.__stderr__, flush=True)
    logging.shutdown()
    os._exit(1)  # a normal exit could wait forever for the other processes
