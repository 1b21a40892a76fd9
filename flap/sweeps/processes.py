"""Several processes for one run: torchrun starts them; what they say, and how all of them end where one fails."""

import atexit
import logging
import os
import platform
import shutil
import sys
import time
import warnings
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from flap.storage import ranks
from flap.storage.status import note_failure, read_status

log = logging.getLogger(__name__)

SECONDS_FOR_FIRST = 2.0  # where all fail alike, the first process speaks, and its launcher ends the others meanwhile
SECONDS_FOR_LAUNCHER = 20.0  # in which it ends a process that has lost another one; on another machine it may not


def join() -> None:
    """Join the other processes of this run; all but the first one are silent and write no files of Hydra."""
    _begin()
    if not ranks.first():
        folder = mkdtemp(prefix="flap-rank-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        own = [f"hydra.{key}.dir={folder}" for key in ("run", "sweep")]
        sys.argv += [*own, "hydra/job_logging=none", "hydra/hydra_logging=none"]


def join_tasks() -> None:
    """Join the other tasks of a SLURM job, which submitit has started for one run (hydra.launcher.tasks_per_node)."""
    tasks = int(os.environ.get("SLURM_NTASKS", 1)) if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else 1
    if tasks > 1 and ranks.size() == 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        _begin()


def _begin() -> None:
    ranks.begin()
    if not ranks.first():
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


def in_processes(processes: int, hydra_config: Any, run_dir: Path) -> str | None:
    """Run the command line of this run in so many processes, and return None, or why it failed in one line."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    sources = [one.path for one in hydra_config.runtime.config_sources if one.provider == "command-line"]
    folders = [part for path in sources for part in ("--config-dir", path)]
    overrides = [*hydra_config.overrides.task, f"hydra.run.dir={run_dir}", "processes=null"]
    options = ["--standalone", f"--nproc-per-node={processes}", "-m", "flap", *folders, *overrides]
    try:
        run(parse_args(options))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # else it has said why
            why = f"ended by {failure.signal_name()}, as the system does where memory is short"
            line = f"rank {rank} on {platform.node()}: {why}"
            log.error("%s", line)
            note_failure(run_dir, line)
        return str(read_status(run_dir).get("error") or f"rank {rank} ended with exit code {failure.exitcode}")
    return None


def end_all(error: Exception, line: str, run_dir: Path) -> None:
    """End this process, which has failed where others go on, and say so; then its launcher ends the others."""
    lost = isinstance(error, ranks.LostError)
    if lost or not ranks.first():
        time.sleep(SECONDS_FOR_LAUNCHER if lost else SECONDS_FOR_FIRST)
    line = f"{ranks.name()}: {line}"
    if not lost:
        note_failure(run_dir, line)
    if ranks.first():
        log.error("%s", line, exc_info=error)
    else:
        print(f"error: {line}", file=sys.stderr)
    logging.shutdown()
    os._exit(1)
