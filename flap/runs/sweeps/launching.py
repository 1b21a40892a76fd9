"""Several processes on one machine.

Each process of a sweep has its own GPU. The processes of one run follow rank 0.
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

# the lock of a GPU, held until this process ends, because CUDA cannot change its GPU
_claimed = ExitStack()


def check_launcher(hydra: Any) -> None:
    """Refuse a launcher for a single run, which would not reach the cluster.

    Hydra would start the run on this machine, for example on a login node.

    hydra: Hydra's part of the config.
    """
    name = hydra.runtime.choices.get("hydra/launcher", "basic")
    if hydra.mode == RunMode.RUN and name != "basic":
        command = shlex.join(["python", "-m", "flap", "-m", *sys.argv[1:]])
        raise ValueError(
            f"hydra/launcher={name}: without -m the run would be here; write: {command}"
        )


def check_jobs(launcher: Any, over_gpus: str) -> None:
    """Check that the options of a sweep for its jobs can be combined.

    launcher: Hydra's section of the launcher. over_gpus: the config's `model.placement`.

    Raises:
        ValueError: a field, its value and what is allowed.
    """
    tasks = launcher.get("tasks_per_node") or 1
    if over_gpus == "auto":  # one process takes all GPUs of its job
        processes = tasks * (launcher.get("nodes") or 1)
        allowed = "device or stream with tasks_per_node or nodes > 1"
        require(processes == 1, "model.placement", over_gpus, allowed)
        return

    gpus = launcher.get("gpus_per_node") or tasks
    allowed = f"{tasks}, as tasks_per_node: each cell is a job, each process of it takes one GPU"
    require(gpus == tasks, "hydra.launcher.gpus_per_node", gpus, allowed)


def make_jobs_private(launcher: Any) -> None:
    """Let only the user read the files that submitit stores for jobs.

    They contain the pickled config, with its secrets.
    """
    folder = _submitit_folder(launcher)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


def remove_finished_jobs(launcher: Any) -> None:
    """Remove the files that submitit has pickled for jobs that have ended.

    Other jobs of the sweep may still need their files.
    """
    folder = _submitit_folder(launcher)
    results = [] if folder is None else list(folder.rglob("*_result.pkl"))
    for result in results:
        for path in result.parent.glob("*.pkl"):
            path.unlink(missing_ok=True)


def _submitit_folder(launcher: Any) -> Path | None:
    """Return the folder in which submitit has a folder for each job; None for other launchers."""
    of_jobs = launcher.get("submitit_folder")  # SWEEP/.submitit/%j
    return Path(str(of_jobs).partition("%")[0]) if of_jobs else None


@cache
def claim_gpu(sweep: Path) -> str | None:
    """Reserve a GPU that no other process of the sweep uses, and return its name.

    The other GPUs are hidden from this process.

    With fewer than two GPUs, do nothing and return None. The GPUs are listed in
    CUDA_VISIBLE_DEVICES; if it is not set, all GPUs count. To be called before CUDA starts.

    Raises:
        ValueError: there are more processes than GPUs, or the folder's disk has no locks.
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
                f"hydra.sweep.dir={sweep}: no locks there, by which processes share GPUs; take a "
                "folder on another disk, or one process"
            )
    raise ValueError(
        f"hydra.launcher.n_jobs: expected at most {len(names)}, one process for each GPU"
    )


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs of CUDA_VISIBLE_DEVICES, otherwise the numbers of all GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch  # here: --help and --cfg should not wait seconds for it

    return [str(i) for i in range(torch.cuda.device_count())]  # uses NVML and does not start CUDA


@cache
def follow() -> None:
    """Silence a process that is not rank 0, and keep it from writing Hydra's output files."""
    if ranks.is_first():
        return
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    unused = Path(gettempdir()) / f"flap-rank-{uuid4()}"  # Hydra's copy of a sweep's config
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
    """End this process, which has failed while others go on, and log why.

    It logs nothing if it failed because another process has failed.
    """
    another_failed = run_dir and isinstance(error, LostError) and read_state(run_dir) == "failed"
    if run_dir and not another_failed:
        line = f"{ranks.name()}: {line}"
        note_failure(run_dir, line)
        log.exception("%s", line)
        if not ranks.is_first():  # only rank 0 logs
            print(f"error: {line}", file=sys.__stderr__, flush=True)
    logging.shutdown()
    os._exit(1)  # what torch waits for at the end may never come
