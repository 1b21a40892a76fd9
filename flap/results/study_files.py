"""Read a study from the folders of sweeps, and write its files.

A study consists of the runs of one or more sweeps. Its files are a table (study.csv), plots, and an
HTML page (index.html).
"""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from math import inf
from os.path import commonpath, relpath
from pathlib import Path
from typing import Any

from flap.config import redact, redacted, shown
from flap.results.configs import FlatConfig, flat, varying
from flap.results.pages import study_page
from flap.results.plots import draw
from flap.results.run_folder import RunRecord, read_run
from flap.results.study import Study
from flap.storage import read_yaml
from flap.storage.atomic_files import atomic_file, write_text
from flap.storage.status import STATUS


def write_study(*sweeps: Path, into: Path | None = None) -> Path:
    """Read one or more sweeps, write the files of their study, and return the page's path.

    into: the folder into which the files are written. For a single sweep, the default is the folder
        of the sweep. For two sweeps A and B, the default is a folder A+B next to A.

    Raises:
        ValueError: a folder cannot be read (see `read_study`), or the files cannot be written.
    """
    first, *others = _by_real_path(sweeps)
    name = "+".join(path.name for path in (first, *others))
    folder = into or (first.with_name(name) if others else sweeps[0])
    return save_study(read_study(*sweeps, into=folder))


def save_study(study: Study) -> Path:
    """Write the table, plots and page of a study into its folder, and return the page's path.

    The contents of all files are created before the first file is written. If the contents cannot
    be created, files that an earlier call has written stay unchanged.

    Raises:
        ValueError: the files cannot be written.
    """
    folder = study.folder
    plots = draw(study)
    table = study.records.to_csv(index=False, lineterminator="\n")
    page = study_page(study, plots)

    try:
        for plot in plots:
            for kind in ("png", "svg"):
                with atomic_file(folder / "plots" / f"{plot.name}.{kind}") as scratch:
                    scratch.write_bytes(getattr(plot, kind))
        write_text(folder / "study.csv", redact(table))
        write_text(folder / "index.html", redact(page))
    except OSError as error:
        raise ValueError(
            f"{shown(folder)}: the study cannot be written there ({error.strerror});"
            " --into names another folder"
        ) from error
    return folder / "index.html"


def read_study(*sweeps: Path, into: Path | None = None) -> Study:
    """Read the runs in the folders of one or more sweeps, and return their study.

    The runs are the sub-folders that have a status.json.

    into: the folder of the study's files. The paths of the runs are relative to this folder. The
        default is the folder of the first sweep.

    Raises:
        ValueError: a folder does not exist, contains no run, or is the folder of a single run.
    """
    into = into or sweeps[0]
    folders = _by_real_path(sweeps)
    together = commonpath(folders)
    runs = []
    for path, folder in folders.items():
        sweep = relpath(path, together) if len(folders) > 1 else ""
        for run in _read_sweep(folder):
            runs.append(replace(run, sweep=sweep, folder=relpath(folder / run.folder, into)))

    commands = list(filter(None, map(command_of, folders)))
    study = Study(into, commands, _with_options(runs))
    first_number = next(iter(study.measured), "")
    return replace(study, runs=sorted(study.runs, key=lambda run: _rank(run, first_number)))


def _by_real_path(folders: Iterable[Path]) -> dict[Path, Path]:
    """Return a dict from real paths, without symbolic links, to folders.

    If a folder is given several times, for example by a symbolic link, it appears only once.
    """
    return {folder.resolve(): folder for folder in folders}


def _read_sweep(folder: Path) -> list[RunRecord]:
    """Return the runs of a sweep.

    A cell is one combination of the options of a sweep. If one run of a cell has finished, the runs
    of this cell that have not finished are left out.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; expected the folder of a sweep, as multirun_outputs/<time>"
        )
    if (folder / STATUS).is_file():
        raise ValueError(f"{folder}: a single run; expected the folder of a sweep, or several runs")
    runs = [read_run(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if not runs:
        raise ValueError(
            f"{folder}: no cell in it; expected the folder of a sweep, "
            "with runs that hold a status.json"
        )

    finished = [_cell(run) for run in runs if run.state == "finished"]
    kept = []
    for run in runs:
        if run.state != "finished" and _cell(run) in finished:
            continue  # another run of this cell, with another job number, has finished
        if run.state == "damaged":
            run = replace(run, error=f"{run.error}; run the cell again")
        kept.append(run)
    return kept


def _cell(run: RunRecord) -> tuple[str, FlatConfig]:
    """Return a value that is equal for all runs of the same cell, and differs between cells.

    The value consists of the name of the run's folder without the job number, and of the overrides
    of the run. A cell is one combination of the options of a sweep.
    """
    return run.folder.partition("_")[2], run.overrides


def _with_options(runs: list[RunRecord]) -> list[RunRecord]:
    """Return copies of the runs whose `options` are the overrides that differ between the runs.

    An override is left out if its key has the same value in the configs of all runs, including runs
    in which this value is the default. Overrides that choose evaluations are also left out, because
    they do not change the pruned model.
    """
    different = varying(run.config | run.overrides for run in runs)
    described = []
    for run in runs:
        options = []
        for key, value in sorted(run.overrides.items()):
            if key in different and not _chooses_evaluations(key):
                options.append(f"{key}={value}")
        described.append(replace(run, options=" ".join(options)))
    return described


def _chooses_evaluations(key: str) -> bool:
    """Return whether a config key chooses evaluations, as `eval` and `eval.zero_shot` do."""
    section, *names = key.split(".")
    return section == "eval" and len(names) <= 1


def _rank(run: RunRecord, number: str) -> tuple[Any, ...]:
    """Return a sort key for runs.

    Finished runs come before runs that have not finished. Within both groups, runs are sorted by
    ratio (the share of the parameters that is removed), then by a measured number, such as a
    perplexity, and then by the name of the folder, always in ascending order.

    number: the name of the measured number; "" if nothing was measured.
    """
    ratio = inf if run.ratio is None else run.ratio
    quality = run.report.evaluation["pruned"].get(number, inf)
    return run.state != "finished", ratio, quality, run.folder


def command_of(sweep: Path) -> str:
    """Return the command line of a sweep without secrets; "" if it was not recorded."""
    # remove secrets, because sweepers that are not part of flap write secrets into multirun.yaml
    record = flat(redacted(read_yaml(sweep / "multirun.yaml")))
    try:
        words = ["python", "-m", "flap", "-m"]
        for source in record["hydra.runtime.config_sources"]:
            if source["provider"] == "command-line":
                words.append(f"--config-dir={source['path']}")
        words += record["hydra.overrides.task"]
        words += [word for word in record["hydra.overrides.hydra"] if word != "hydra.mode=MULTIRUN"]
        return shlex.join(words)
    except (LookupError, TypeError):
        return ""
