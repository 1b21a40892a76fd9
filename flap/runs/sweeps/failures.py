"""What the command line says of an error: one line for each failed run."""

from pathlib import Path
from typing import ClassVar

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from flap.config import explain
from flap.runs.sweeps.callbacks import StudyCallback
from flap.storage.status import STATUS, read_status


class RunFailedError(Exception):
    """A run of a sweep failed; its error is in its own log. Arguments: the sweep's folder, the error in one line."""

    lines: ClassVar[list[str]] = []  # of all cells; those of other processes come with the results that Hydra gets

    def __init__(self, folder: str, line: str) -> None:
        super().__init__(folder, line)
        self.lines.append(line)


def failure_lines(error: BaseException, begin: float) -> list[str]:
    """Return the lines that say why a command has failed that began then; an error that nobody expects is raised."""
    if isinstance(error, RunFailedError):
        lines = failures(Path(error.args[0]), begin)
        refused = [line for line in dict.fromkeys(error.lines) if not any(one.endswith(line) for one in lines)]
        return [*lines, *(f"failed: {line}" for line in refused)]  # whose folders keep what they have
    if isinstance(error, RuntimeError | FileNotFoundError):  # runs catch their own errors: this one is from submitting
        sweep = StudyCallback.open_sweep
        of_cells = failures(Path(sweep.hydra.sweep.dir), begin) if sweep is not None else []
        return [*of_cells, f"error: {explain_launch(error)}"]
    if isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        return [f"error: {explain(error)}"]
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted: the same command goes on"]
    if isinstance(error, OSError):  # from Hydra's own files in the run's folder
        what = f"{error.filename}: cannot be written ({error.strerror})" if error.filename else str(error)
        return [f"error: {what}; hydra.run.dir and hydra.sweep.dir name another folder"]
    raise error


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
