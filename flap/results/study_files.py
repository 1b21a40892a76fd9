"""A study on disk: the folders of sweeps that it is read from; its files study.csv, plots/ and index.html, the page."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from os.path import relpath
from pathlib import Path
from typing import Any

from flap.config import redact, redacted
from flap.results.pages import study_page
from flap.results.plots import draw
from flap.results.run_folder import RunRecord, read_run
from flap.results.study import Study
from flap.storage import read_yaml
from flap.storage.atomic_files import atomic_file, write_text
from flap.storage.status import STATUS


def write_study(*sweeps: Path, into: Path | None = None) -> Path:
    """Write the table, plots and page of one or more sweeps, and return the page's path.

    All files are made in memory first, so that an error leaves the files of an earlier call unchanged.
    into: their folder; None: that of the sweep, or for several A+B beside the first of the sweeps A and B.

    Raises:
        ValueError: a folder cannot be read (see `read_study`).
    """
    folders = distinct(sweeps)
    together = folders[0].resolve().parent / "+".join(sweep.resolve().name for sweep in folders)
    folder = into or (together if len(folders) > 1 else folders[0])
    study = read_study(*sweeps, into=folder)
    plots = draw(study)
    pictures = {
        f"{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")
    }
    texts = {
        "study.csv": study.records.to_csv(index=False, lineterminator="\n"),
        "index.html": study_page(study, plots),
    }
    for name, picture in pictures.items():
        with atomic_file(folder / "plots" / name) as scratch:
            scratch.write_bytes(picture)
    for name, text in texts.items():
        write_text(folder / name, redact(text))
    return folder / "index.html"


def read_study(*sweeps: Path, into: Path | None = None) -> Study:
    """Read every sub-folder of the sweeps that has a status.json, and return the study.

    into: the folder of the study's files, to which the runs' folders are relative; None: that of the first sweep.

    Raises:
        ValueError: a folder does not exist or has no run.
    """
    folders = distinct(sweeps)
    into = into or sweeps[0]
    names = _names(folders) if len(folders) > 1 else [""]
    runs = [
        replace(run, sweep=name, folder=relpath(folder / run.folder, into))
        for folder, name in zip(folders, names, strict=True)
        for run in _read_sweep(folder)
    ]
    study = Study(into, tuple(filter(None, map(command_of, folders))), tuple(_with_options(runs)))
    number = next(iter(study.measured), "")
    return replace(study, runs=tuple(sorted(study.runs, key=lambda run: _rank(run, number))))


def distinct(folders: Sequence[Path]) -> list[Path]:
    """Return the folders without repetitions, also under other names."""
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]


def _names(folders: list[Path]) -> list[str]:
    """Return a name for each sweep: that of its folder, or all paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]


def _read_sweep(folder: Path) -> list[RunRecord]:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; expected that of a sweep, as multirun_outputs/<time>"
        )
    runs = [read_run(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if (folder / STATUS).is_file():
        raise ValueError(f"{folder}: a single run; expected the folder of a sweep, or several runs")
    if not runs:
        raise ValueError(
            f"{folder}: no cell in it; expected the folder of a sweep, with runs that hold a status.json"
        )
    damaged = {
        run.folder: f"{run.error}; run the cell again" for run in runs if run.state == "damaged"
    }
    jobs = {
        run.folder: (run.folder.partition("_")[2], run.overrides) for run in runs
    }  # without their numbers
    finished = [jobs[run.folder] for run in runs if run.state == "finished"]
    # one that has not finished may have been run again under another number
    last = [run for run in runs if run.state == "finished" or jobs[run.folder] not in finished]
    return [replace(run, error=damaged.get(run.folder, run.error)) for run in last]


def _with_options(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs with `options` set to the overrides that differ between them.

    What one sweep sets and another has by default is no difference, and whole kinds of evaluation change no model.
    """
    given = (key for run in runs for key in run.overrides)
    keys = dict.fromkeys(key for key in given if key.split(".")[0] != "eval" or key.count(".") > 1)
    differ = [
        key
        for key in keys
        if len({run.overrides.get(key, run.config.get(key)) for run in runs}) > 1
    ]
    return [
        replace(
            run,
            options=" ".join(
                f"{key}={run.overrides[key]}" for key in differ if key in run.overrides
            ),
        )
        for run in runs
    ]


def _rank(run: RunRecord, number: str) -> tuple[Any, ...]:
    """Return the sort key of a run: finished first, then by ratio, by the number named `number`, and by folder."""
    quality = run.numbers("pruned").get(number, inf)
    return run.state != "finished", inf if run.ratio is None else run.ratio, quality, run.folder


def command_of(sweep: Path) -> str:
    """Return the command line of a sweep, without secrets; empty if there is no record of it, or a damaged one."""
    record = redacted(
        read_yaml(sweep / "multirun.yaml")
    )  # sweeps of earlier versions recorded their secrets
    try:
        given = record["hydra"]["overrides"]
        own = [word for word in given["hydra"] if word != "hydra.mode=MULTIRUN"]
        sources = record["hydra"]["runtime"]["config_sources"]
        folders = [
            f"--config-dir={one['path']}" for one in sources if one["provider"] == "command-line"
        ]
        return shlex.join(["python", "-m", "flap", "-m", *folders, *given["task"], *own])
    except (LookupError, TypeError):
        return ""
