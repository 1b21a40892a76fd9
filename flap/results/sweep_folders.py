"""Read the folders of sweeps as one study, with Hydra's record of each sweep, multirun.yaml."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod
from os.path import relpath
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flap.results.run_folder import RunRecord, read_run
from flap.results.study import Study
from flap.storage.status import STATUS

RECORD = "multirun.yaml"
GRID = "BasicSweeper"  # Hydra's own sweeper, whose cells are the product of all choices


def read_study(*sweeps: Path, into: Path | None = None) -> Study:
    """Read every sub-folder of the sweeps that has a status.json, and return the study.

    into: the folder of the study's files, to which the runs' folders are relative; None: that of the first sweep.

    Raises:
        ValueError: a folder does not exist or has no run.
    """
    folders, into = distinct(sweeps), into or sweeps[0]
    names = _names(folders) if len(folders) > 1 else [""]
    runs = [
        replace(run, sweep=name, folder=relpath(folder / run.folder, into))
        for folder, name in zip(folders, names, strict=True)
        for run in _read_sweep(folder)
    ]
    commands, planned = zip(*map(read_sweep, folders), strict=True)
    planned_runs = sum(planned) if all(planned) else 0
    study = Study(into, tuple(filter(None, commands)), tuple(_with_options(runs)), planned_runs)
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
        raise ValueError(f"{folder}: no such folder; expected that of a sweep, as multirun_outputs/<time>")
    runs = [read_run(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if (folder / STATUS).is_file():
        raise ValueError(f"{folder}: a single run; expected the folder of a sweep, or several runs")
    if not runs:
        raise ValueError(f"{folder}: no cell in it; expected the folder of a sweep, with runs that hold a status.json")
    damaged = {run.folder: f"{run.error}; run the cell again" for run in runs if run.state == "damaged"}
    return [replace(run, error=damaged.get(run.folder, run.error)) for run in runs if not _repeated(run, runs)]


def _repeated(run: RunRecord, runs: list[RunRecord]) -> bool:
    """Return whether an unfinished run was run again under another job number, and finished."""

    def job(run: RunRecord) -> tuple[Any, ...]:
        return run.folder.partition("_")[2], run.overrides

    return run.state != "finished" and any(other.state == "finished" and job(other) == job(run) for other in runs)


def _with_options(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs with `options` set to the overrides that differ between them.

    What one sweep sets and another has by default is no difference.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides if not _selects_evaluation(key))
    differ = [key for key in keys if len({run.overrides.get(key, run.config.get(key)) for run in runs}) > 1]
    return [
        replace(run, options=" ".join(f"{key}={run.overrides[key]}" for key in differ if key in run.overrides))
        for run in runs
    ]


def _selects_evaluation(key: str) -> bool:
    """Return whether an override chooses whole kinds of evaluation, which does not change the model."""
    return key == "eval" or (key.startswith("eval.") and key.count(".") == 1)


def _rank(run: RunRecord, number: str) -> tuple[Any, ...]:
    """Return the sort key of a run: finished first, then by ratio, by the number named `number`, and by folder."""
    quality = run.numbers("pruned").get(number, inf)
    return run.state != "finished", inf if run.ratio is None else run.ratio, quality, run.folder


def read_sweep(folder: Path) -> tuple[str, int]:
    """Return the command line, empty if there is no record, and the number of planned cells, 0 if it is unknown."""
    path = folder / RECORD
    try:
        record: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        hydra = record["hydra"]
        task, own = hydra["overrides"]["task"], hydra["overrides"]["hydra"]
        own = [word for word in own if word != "hydra.mode=MULTIRUN"]
        command = shlex.join(["python", "-m", "flap", "-m", *task, *own])
    except (OSError, ValueError, LookupError, TypeError, YAMLError, OmegaConfBaseException):  # missing or damaged
        return "", 0
    return command, _planned(hydra.get("sweeper") or {}, task)


def _planned(sweeper: dict[str, Any], task: list[str]) -> int:
    """Return the product of the numbers of values of all overrides: those of the sweeper, then of the command line."""
    if not str(sweeper.get("_target_")).endswith(GRID):
        return 0
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *task])
        chosen = {override.key_or_group: override for override in overrides}.values()
        return prod(len([*one.sweep_iterator()]) for one in chosen if one.is_sweep_override())
    except HydraException:  # as glob(*), whose choices only the sweep itself knows
        return 0
