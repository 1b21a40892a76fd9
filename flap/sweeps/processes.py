"""Several processes for one run: torchrun starts them; what they say, and how all of them end where one fails."""

import logging
import os
import platform
import re
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

from hydra.types import RunMode

from flap.storage import ranks
from flap.storage.status import note_failure, read_status
from flap.sweeps.heartbeats import LOOKS, LOOKS_WHEN_LOST, Heartbeats

log = logging.getLogger(__name__)

SECONDS_FOR_FIRST = 4.0  # where all fail alike, the first process speaks, and the others know it meanwhile
SECONDS_FOR_OTHERS = 3.0  # to read that the first process has failed: without torchrun, their store ends with it

_heartbeats: Heartbeats | None = None
_run_dir: Path | None = None  # once it is known
_unused: Path | None = None  # the folder that Hydra makes for another process than the first


def join() -> None:
    """Join the other processes of this run; all but the first one are silent and write no files of Hydra."""
    global _unused
    _begin()
    if not ranks.first():
        _unused = Path(gettempdir()) / f"flap-rank-{uuid4()}"
        own = [f"hydra.{key}.dir={_unused}" for key in ("run", "sweep")]
        sys.argv += [*own, "hydra/job_logging=none", "hydra/hydra_logging=none"]


def join_tasks() -> bool:
    """Join the other tasks of a SLURM job, which submitit has started for one run (hydra.launcher.tasks_per_node).

    Returns whether there are any; then they are to `leave` at the end of the run.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", 1)) if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else 1
    if together := tasks > 1 and ranks.size() == 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        _begin()
    return together


def _begin() -> None:
    global _heartbeats
    ranks.begin()
    if not ranks.first():
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    if ranks.size() > 1:
        _heartbeats = Heartbeats(_end_lost)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of each process
        if "TORCHELASTIC_RUN_ID" in os.environ:  # by which torchrun ends a process after another one has failed
            signal.signal(signal.SIGTERM, lambda *_: _wait_for_others("ended by SIGTERM"))


def leave() -> None:
    """Leave the other processes, once all are at their end."""
    if _heartbeats:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ranks.end()
    if _heartbeats:
        _heartbeats.end()


def work_in(run_dir: Path) -> None:
    """Let what ends this process be noted in the folder of the run; one that is not needed goes before it may end."""
    global _run_dir
    _run_dir = run_dir
    if _unused:
        shutil.rmtree(_unused, ignore_errors=True)


def in_processes(processes: int, hydra_config: Any, run_dir: Path) -> str | None:
    """Run the command line of this run in so many processes, and return None, or why it failed in one line."""
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if "joblib" in hydra_config.launcher._target_ and torch.cuda.device_count() > 1:
        cells = "none with hydra/launcher=joblib, whose cells would take the same GPUs; take another launcher"
        return _failed(run_dir, f"processes={processes}: expected {cells}")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    sources = [one.path for one in hydra_config.runtime.config_sources if one.provider == "command-line"]
    folders = [part for path in sources for part in ("--config-dir", path)]
    searched = [one for one in hydra_config.overrides.hydra if one.startswith("hydra.searchpath=")]
    folder_of = {"hydra.run.dir": run_dir}
    if hydra_config.mode == RunMode.MULTIRUN:
        folder_of["hydra.sweep.dir"] = Path(hydra_config.sweep.dir).resolve()
    placed = [f"{key}={quoted(folder)}" for key, folder in folder_of.items()]
    overrides = [*hydra_config.overrides.task, *searched, *placed, "processes=null"]
    named = ["--config-name", hydra_config.job.config_name]
    options = ["--standalone", f"--nproc-per-node={processes}", "-m", "flap", *folders, *named, *overrides]
    before = read_status(run_dir)
    try:
        run(parse_args(options))
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0 and read_status(run_dir) == before:  # else a process has said why
            why = f"ended by {failure.signal_name()}, as the system does where memory is short"
            _failed(run_dir, f"rank {rank} on {platform.node()}: {why}")
        return str(read_status(run_dir).get("error") or f"rank {rank} ended with exit code {failure.exitcode}")
    return None


def quoted(folder: Path) -> str:
    """Return a folder as a value that Hydra reads: in quotes, unless it has only characters that mean nothing there."""
    text = str(folder).replace("'", r"\'")
    return text if re.fullmatch(r"[\w./-]+", text, re.ASCII) else f"'{text}'"


def _failed(run_dir: Path, line: str) -> str:
    log.error("%s", line)
    note_failure(run_dir, line)
    return line


def end_all(error: Exception, line: str) -> None:
    """End this process, which has failed where others go on, and say so; then the others end, too."""
    if isinstance(error, ranks.LostError):
        _wait_for_others(line)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, as soon as others have ended
    if not ranks.first():
        time.sleep(SECONDS_FOR_FIRST)
    _end(f"{ranks.name()}: {line}", error)


def _wait_for_others(line: str) -> None:
    """Give the heartbeats time to find which process has ended, and to end this one; if all are alive, end it here."""
    if _heartbeats:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _heartbeats.looks = LOOKS_WHEN_LOST
        time.sleep(LOOKS)  # it ends this process as soon as it knows; torchrun waits for 30 s
    _end(f"{ranks.name()}: {line}")


def _end_lost(silent: list[str], speaks: bool) -> None:
    """End this process, as others have failed, and have said why, or are silent."""
    if speaks:
        _end(f"{' and '.join(silent)}: ended without a word, as where memory is short, or hangs")
    time.sleep(SECONDS_FOR_FIRST if silent else 0)  # its launcher ends all, and says so
    os._exit(1)


def _end(line: str, error: Exception | None = None) -> None:
    if _run_dir:
        note_failure(_run_dir, line)
    if not (ranks.first() and error):
        print(file=sys.stderr)  # the first process may be within the line of a progress bar
    if ranks.first() and _run_dir:  # else no log has been opened
        log.error("%s", line, exc_info=error)
    else:
        print(f"error: {line}", file=sys.stderr)
    logging.shutdown()
    if _heartbeats:
        _heartbeats.fail()
        time.sleep(SECONDS_FOR_OTHERS if ranks.first() else 0)
    os._exit(1)
