"""The command line: parse, run, show. Only this module uses HydraConfig; the work is in `flap.pipeline.run`."""

import glob
import logging
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config import FlapConfig, build, config_dir, explain, folder_name, typed
from flap.storage import ranks, read_state, write_status, write_text
from flap.storage.status import reason, run_folder
from flap.sweeps.callbacks import open_folder, write_open_study
from flap.sweeps.launching import claim_gpu, explain_launch, failures
from flap.sweeps.processes import end_all, in_processes, join, join_tasks, leave, work_in

if TYPE_CHECKING:
    from flap.tracking import JobInfo

log = logging.getLogger(__name__)

SUBCOMMANDS = {"cache": "flap.storage.cache_command", "doctor": "flap.doctor"}


class RunFailedError(Exception):
    """A run of a sweep failed; its error is in its own log. Arguments: the sweep's folder, the error in one line."""


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def task(config: DictConfig) -> None:
    """Run the composed config: the single run of a command line, or one job of a sweep."""
    of_tasks, line = join_tasks(), _attempt(config)
    if of_tasks:
        leave()
    if line is None:
        return
    if HydraConfig.get().mode == RunMode.RUN:
        raise SystemExit(1)
    raise RunFailedError(HydraConfig.get().sweep.dir, line)


def _attempt(config: DictConfig) -> str | None:
    """Run and return None, or log the error and return it in one line.

    The exception is not passed on, because its traceback would keep the model in memory.
    """
    run_dir = ranks.from_first(lambda: Path(HydraConfig.get().runtime.output_dir))
    if not ranks.started() and (config.processes or 1) > 1 and not config.dry_run:
        return in_processes(config.processes, HydraConfig.get(), run_dir)
    work_in(run_dir)
    try:
        with ExitStack() as stack:
            ranks.from_first(lambda: stack.enter_context(run_folder(run_dir)) and None)
            _run(config, run_dir)
    except Exception as error:
        line = reason(error)
        if ranks.size() > 1 and not isinstance(error, ranks.AgreedError):
            end_all(error, line)
        log.exception("%s", line)
        return line
    return None


def _run(config: DictConfig, run_dir: Path) -> None:
    """Check the config, prune and measure, and print the report; skip a run that is finished already.

    With `dry_run`, print what the run would take instead. What the folder says of a finished run stays until another
    run has passed all checks.
    """
    if not (finished := ranks.from_first(lambda: read_state(run_dir) == "finished")):
        _record(config, run_dir)
    checked, hydra_config = ranks.agreed(lambda: typed(config)), HydraConfig.get()
    # imported here because --help and invalid values should not wait seconds for torch and transformers
    from flap.pipeline import run, stages
    from flap.results import show
    from flap.runs.prepare import prepare
    from flap.storage.progress import progress_file

    _quieten_libraries()
    if checked.dry_run:
        ranks.from_first(lambda: _dry_run(checked, run_dir))
        return
    may_share_gpus = "joblib" in hydra_config.launcher._target_ and checked.model.device != "cpu"
    if may_share_gpus and (gpu := claim_gpu(Path(hydra_config.sweep.dir))):
        log.info("GPU %s", gpu)
    in_one_process = hydra_config.mode == RunMode.MULTIRUN and "submitit" not in hydra_config.launcher._target_
    tracking = build("tracking", checked.tracking)
    ranks.from_first(tracking.check)
    if checked.resume and ranks.from_first(lambda: _done_already(checked, run_dir, in_one_process)):
        return
    if finished:
        ranks.agreed(lambda: prepare(checked, run_dir, stages=stages, keep_dense=in_one_process))
        _record(config, run_dir)
    if not ranks.first():  # the first one tells of the run
        run(checked, run_dir, keep_dense=in_one_process)
        return
    if not checked.checkpoint.save and (old := run_dir / "checkpoint").exists():
        log.warning("%s: of an earlier run, whose report is replaced; checkpoint.save=false leaves it as it is", old)
    write_status(run_dir, "running")
    with progress_file(run_dir), tracking.start(asdict(checked), run_dir, _job_info(checked, run_dir)) as tracked:
        report = run(checked, run_dir, keep_dense=in_one_process)
        write_status(run_dir, "finished")
        tracked.finish(report)
    show(report)


def _dry_run(config: FlapConfig, run_dir: Path) -> None:
    """Print what the run would take, and write it to estimate.json."""
    from flap.pipeline import stages
    from flap.runs.forecast import forecast

    expected = forecast(config, stages, run_dir)
    print(config.run_name, *expected.lines(), sep="\n")
    expected.save(run_dir / "estimate.json")


def _quieten_libraries() -> None:
    """Leave the console to this program: no bars, no hints of libraries, and nothing twice."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    logging.getLogger("huggingface_hub").handlers.clear()  # what it says reaches ours, which print it once


def _done_already(config: FlapConfig, run_dir: Path, keep_dense: bool) -> bool:
    """Return whether this run has finished before, here or in a cell beside, on the same inputs; say where."""
    from flap.results import finished_run
    from flap.runs.prepare import prepare

    named = f"*_{glob.escape(folder_name(config.run_name))}"  # the same cell, which may have another job number
    cells = sorted(run_dir.parent.glob(named)) if _in_sweep(run_dir) else []
    if (done := finished_run(run_dir, cells, asdict(config))) is None:
        return False
    folder, report = done
    again = prepare(config, run_dir, keep_dense=keep_dense)
    if changed := [name for name, value in again.inputs.items() if report.inputs.get(name) != value]:
        log.info("%s holds a run on other inputs (%s), which runs again", folder, ", ".join(changed))
    else:
        log.info("done already, in %s (resume=false runs it again)", folder)
    return not changed


def _job_info(config: FlapConfig, run_dir: Path) -> "JobInfo":
    """Return the names of this run for its tracker."""
    from flap.tracking import JobInfo

    choices, in_sweep = HydraConfig.get().runtime.choices, _in_sweep(run_dir)
    return JobInfo(
        id=str(run_dir.resolve()),
        name=config.run_name,
        group=Path(HydraConfig.get().sweep.dir).resolve().name if in_sweep else None,
        job_type="sweep" if in_sweep else "run",
        tags=(choices["metric"], choices["structure"]),
    )


def _in_sweep(run_dir: Path) -> bool:
    """Return whether this run is a cell of a sweep; one of several processes has a command line of its own."""
    known = HydraConfig.get()
    return known.mode == RunMode.MULTIRUN or run_dir.resolve().parent == Path(known.sweep.dir).resolve()


def _record(config: DictConfig, run_dir: Path) -> None:
    """Write the composed config into .hydra, as Hydra does with `hydra.output_subdir`, but before it asks anybody."""
    if not ranks.first():
        return
    hydra_config = HydraConfig.instance().cfg
    parts = {"config": config, "hydra": hydra_config, "overrides": HydraConfig.get().overrides.task}
    (run_dir / ".hydra").mkdir(exist_ok=True)
    for name, part in parts.items():
        write_text(run_dir / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part))


def help_text() -> str:
    """Return what `--help` prints, as Hydra does, which takes a second for it: it copies all configs for each group."""
    folder = Path(config_dir())
    parts = OmegaConf.create({"hydra": {"help": OmegaConf.load(folder / "hydra" / "help" / "flap.yaml")}})
    groups = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "hydra")
    choices = [f"{group.name}: {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}\n" for group in groups]
    return Template(parts.hydra.help.template).substitute(APP_CONFIG_GROUPS="".join(choices))


def main() -> None:
    """Run the command line; on an error, print one line that says what to change and exit with code 1."""
    if module := SUBCOMMANDS.get("".join(sys.argv[1:2])):
        import_module(module).main(sys.argv[2:])
        return
    if sys.argv[1:] == ["--help"]:
        print(help_text())
        return
    logging.raiseExceptions = False  # a log that cannot be written prints no traceback on the console
    try:
        if "HYDRA_FULL_ERROR" in os.environ:  # the user asks for tracebacks
            _joined()
        else:
            _one_line_errors()
    finally:
        write_open_study()  # Hydra calls no callback if a job has failed
        leave()


def _joined() -> None:
    if ranks.started():
        join()
    task()


def _one_line_errors() -> None:
    """Run the command line, and print errors in one line each."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on instead of printing them
    failed: Exception | None = None  # of Hydra's own work, in which it may be the only process that fails
    begin = time.time()  # a sweep's folder may have cells of an earlier command
    try:
        _joined()
    except RunFailedError as error:
        folder, line = error.args
        lines = failures(Path(folder), begin)
        if not any(one.endswith(line) for one in lines):  # of a cell whose folder keeps what it has
            lines.append(f"failed: {line}")
    except (RuntimeError, FileNotFoundError) as error:  # runs catch their own errors: this one is from submitting
        folder, failed = open_folder(), error
        lines = [*(failures(folder, begin) if folder else []), f"error: {explain_launch(error)}"]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        lines = [f"error: {explain(error)}"]
    except KeyboardInterrupt:
        lines = ["interrupted: the same command goes on"]
    except OSError as error:  # from Hydra's own files in the run's folder
        what = f"{error.filename}: cannot be written ({error.strerror})" if error.filename else str(error)
        lines, failed = [f"error: {what}; hydra.run.dir and hydra.sweep.dir name another folder"], error
    else:
        return
    if failed and ranks.size() > 1:
        end_all(failed, lines[-1].removeprefix("error: "))
    if ranks.first():
        print(*lines, sep="\n", file=sys.stderr)
    raise SystemExit(1)
