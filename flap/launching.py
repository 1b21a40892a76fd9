"""What sweeps over several processes need: one GPU for each process, and one line for each run that failed."""

import os
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from flap.status import STATUS, read_status

_claimed: list[FileLock] = []  # at most one, held until this process ends: CUDA keeps the GPU that it started with


@cache
def claim_gpu(sweep: Path) -> str | None:
    """Let this process see one GPU that no other process of the sweep has, and name it; None without several GPUs.

    The GPUs are those that CUDA_VISIBLE_DEVICES names, else all. To be called before CUDA starts.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    names = _visible_gpus()
    if len(names) < 2:
        return None
    for name in names:
        lock = FileLock(sweep / f".gpu-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _claimed.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return name
    raise ValueError(f"hydra.launcher.n_jobs: expected at most {len(names)}, one process for each GPU")


def _visible_gpus() -> list[str]:
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    import torch  # not before --help and --cfg have answered

    return [str(i) for i in range(torch.cuda.device_count())]  # asks the driver's monitor and does not start CUDA


def failures(sweep: Path) -> list[str]:
    """One line for each run of a sweep that failed."""
    runs = {path.parent: read_status(path.parent) for path in sorted(sweep.glob(f"*/{STATUS}"))}
    return [f"failed: {run}: {status.get('error')}" for run, status in runs.items() if status.get("state") == "failed"]


def explain_launch(error: RuntimeError | FileNotFoundError) -> str:
    """One line about jobs that could not be submitted, or that ended without a word."""
    if 'Could not detect "srun"' in str(error) or getattr(error, "filename", None) == "sbatch":
        return (
            "hydra/launcher=slurm: no sbatch on this machine; expected a SLURM login node, "
            "or hydra/launcher=submitit_local or joblib"
        )
    return "hydra/launcher: " + " ".join(str(error).split("Error stream produced:")[0].split())
