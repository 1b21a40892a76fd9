"""Sweeps over several processes: assign one GPU to each process, and report failed runs in one line each."""

import os
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from flap.storage.status import STATUS, read_status

_claimed: list[FileLock] = []  # at most one, held until this process ends, because CUDA cannot change its GPU


@cache
def claim_gpu(sweep: Path) -> str | None:
    """Reserve a GPU that no other process of the sweep uses, hide the others from this process, and return its name.

    With fewer than two GPUs, do nothing and return None. The GPUs are those of CUDA_VISIBLE_DEVICES, otherwise all. To
    be called before CUDA starts.

    Raises:
        ValueError: there are more processes than GPUs, or the folder's disk has no locks.
    """
    names = _visible_gpus()
    if len(names) < 2:
        return None
    for name in names:
        lock = FileLock(sweep / f".gpu-{name}.lock", fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except OSError as error:
            raise ValueError(
                f"hydra.sweep.dir={sweep}: no locks there ({error}), by which processes share GPUs; take a folder on "
                "another disk, or one process"
            ) from error
        _claimed.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return name
    raise ValueError(f"hydra.launcher.n_jobs: expected at most {len(names)}, one process for each GPU")


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs of CUDA_VISIBLE_DEVICES, otherwise the numbers of all GPUs."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    import torch  # here: --help and --cfg should not wait seconds for it

    return [str(i) for i in range(torch.cuda.device_count())]  # uses NVML and does not start CUDA


def failures(sweep: Path, since: float = 0) -> list[str]:
    """Return one line for each run of a sweep that has failed since a time."""
    paths = [path for path in sorted(sweep.glob(f"*/{STATUS}")) if path.stat().st_mtime >= since]
    runs = {path.parent: read_status(path.parent) for path in paths}
    return [f"failed: {run}: {status.get('error')}" for run, status in runs.items() if status.get("state") == "failed"]


def explain_launch(error: RuntimeError | FileNotFoundError) -> str:
    """Return one line that says why jobs could not be submitted, or ended without an error of their own."""
    if 'Could not detect "srun"' in str(error) or getattr(error, "filename", None) == "sbatch":
        return (
            "hydra/launcher=slurm: no sbatch on this machine; expected a SLURM login node, "
            "or hydra/launcher=submitit_local or joblib"
        )
    return "hydra/launcher: " + " ".join(str(error).split("Error stream produced:")[0].split())
