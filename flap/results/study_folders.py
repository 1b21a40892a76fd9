"""Read the folders of sweeps into cells, and check the files in them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from os.path import relpath
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flap.evaluation.kept import kept_documents
from flap.evaluation.results import RESULTS, Results
from flap.reporting.contents import missing
from flap.reporting.report import SCHEMA
from flap.reporting.resume import BOOKKEEPING
from flap.results.config_keys import flatten
from flap.results.study import CHOICES, Cell, Study, measured
from flap.results.sweep_record import read_sweep
from flap.storage.progress_file import read_progress
from flap.storage.status import STATUS, STATUS_SCHEMA

SCHEMAS = {"report.json": SCHEMA, STATUS: STATUS_SCHEMA}
FILES = ("report.md", "report.json", "layers.png", "flap.log")
UNFINISHED = "no report: still running, or killed"


def read_study(*sweeps: Path, into: Path | None = None, waiting: bool = False) -> Study:
    """Read every sub-folder of the sweeps that has a status.json, and return the study.

    into: the folder of the study's files, to which the cells' folders are relative; None: that of the first sweep.
    waiting: a sweep may have no cell yet.
    A cell whose status or report cannot be read is "damaged", and its `error` says which file, and why.

    Raises:
        ValueError: a folder does not exist or has no cell.
    """
    folders, into = distinct(sweeps), into or sweeps[0]
    names = _names(folders) if len(folders) > 1 else [""]
    cells = [
        replace(cell, sweep=name, folder=relpath(folder / cell.folder, into))
        for folder, name in zip(folders, names, strict=True)
        for cell in _read_sweep(folder, waiting)
    ]
    number = next(iter(measured(cells)), "")
    commands, planned = zip(*map(read_sweep, folders), strict=True)
    return Study(
        into,
        tuple(filter(None, commands)),
        tuple(sorted(_with_options(cells), key=_rank(number))),
        sum(planned) if all(planned) else 0,
    )


def distinct(folders: Sequence[Path]) -> list[Path]:
    """Return the folders without repetitions, also under other names."""
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]


def _names(folders: list[Path]) -> list[str]:
    """Return a name for each sweep: that of its folder, or all paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]


def _read_sweep(folder: Path, waiting: bool) -> list[Cell]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected that of a sweep, as multirun_outputs/<time>")
    cells = [_read_cell(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if (folder / STATUS).is_file():
        raise ValueError(f"{folder}: a single run; expected the folder of a sweep, or python -m flap.compare for runs")
    if not cells and not waiting:
        raise ValueError(f"{folder}: no cell in it; expected the folder of a sweep, with runs that hold a status.json")
    return [cell for cell in cells if not _repeated(cell, cells)]


def _read_cell(folder: Path) -> Cell:
    state, error, report = _read_result(folder)
    config = OmegaConf.create(report["config"]) if report else _read_yaml(folder / ".hydra" / "config.yaml")
    choices = OmegaConf.select(_read_yaml(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices") or {}
    ratio = OmegaConf.select(config, "ratio")
    if ratio is None and report:  # a run with a target: the share that it took
        ratio = report["ratio"]["realised_decoder"]
    return Cell(
        folder=folder.name,
        state=state,
        error=error,
        files=tuple(name for name in FILES if (folder / name).is_file()),
        overrides=_read_overrides(folder / ".hydra" / "overrides.yaml", config),
        model=OmegaConf.select(config, "model.name"),
        method=OmegaConf.select(config, "method"),
        metric=choices.get("metric"),
        structure=choices.get("structure"),
        ratio=None if ratio is None else round(float(ratio), 6),  # range(0.1,0.4,0.1) makes 0.30000000000000004
        seed=OmegaConf.select(config, "seed"),
        report=report,
        documents=kept_documents(folder, report["evaluation"]["pruned"]) if report else {},
        progress=read_progress(folder) if state == "unfinished" else "",
        so_far=Results(folder / RESULTS).pruned() if state == "unfinished" else {},
        better=report.get("better", {}) if report else Results(folder / RESULTS).better(),
        config=flatten(_plain_config(config), choices),
    )


def _read_result(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Return the state of a cell, why it has no result, and its report, which is empty unless it has finished."""
    try:
        status = _read_json(folder / STATUS)
        if status["state"] == "finished":
            return "finished", "", _read_json(folder / "report.json")
    except ValueError as error:
        return "damaged", str(error), {}
    return ("failed", status["error"] or "", {}) if status["state"] == "failed" else ("unfinished", UNFINISHED, {})


def _plain_config(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises: ValueError: it, or a part of it, is missing or damaged."""
    try:
        content = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: cannot be read ({type(error).__name__}); run the cell again") from error
    expected = SCHEMAS[path.name]
    if content.get("schema") != expected:
        schema = content.get("schema")
        raise ValueError(f"{path.name}: schema {schema}, this version reads {expected}; run the cell again")
    is_status = path.name == STATUS
    if lacking := [key for key in ("state", "error") if key not in content] if is_status else missing(content):
        raise ValueError(f"{path.name}: has no valid {', '.join(lacking)}; run the cell again")
    return content


def _read_yaml(path: Path) -> DictConfig:
    """Return a YAML file without resolving interpolations; empty if the file is missing or damaged."""
    try:
        content = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return OmegaConf.create({})
    return content if isinstance(content, DictConfig) else OmegaConf.create({})


def _read_overrides(path: Path, config: DictConfig) -> dict[str, str]:
    """Return the overrides of a cell, {"calibration.num_samples": "32"}, without those that are fields of `Cell`.

    A value is taken from the cell's config if it is there, because a restarted sweep overwrites Hydra's record of the
    overrides, also of a finished cell that had other values.
    """
    try:
        lines = [str(line) for line in OmegaConf.load(path)]
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):  # missing or damaged
        lines = []
    pairs = {key.lstrip("+~"): value for key, _, value in (line.partition("=") for line in lines)}
    keys = [key for key in pairs if key.removesuffix(".name") not in CHOICES and key.split(".")[0] not in BOOKKEEPING]
    return {key: _plain(OmegaConf.select(config, key), pairs[key]) for key in keys}


def _plain(value: Any, typed: str) -> str:
    """Return a value of the config as text; if it is a group or missing, the text that was typed."""
    return typed if value is None or OmegaConf.is_dict(value) else str(value)


def _repeated(cell: Cell, cells: list[Cell]) -> bool:
    """Return whether an unfinished cell was run again under another job number, and finished."""

    def run(cell: Cell) -> tuple[Any, ...]:
        return cell.folder.partition("_")[2], cell.overrides

    return cell.state != "finished" and any(other.state == "finished" and run(other) == run(cell) for other in cells)


def _with_options(cells: list[Cell]) -> list[Cell]:
    """Return the cells with `options` set to the overrides that differ between them.

    What one sweep sets and another has by default is no difference.
    """
    keys = dict.fromkeys(key for cell in cells for key in cell.overrides)
    differ = [key for key in keys if len({_value(cell, key) for cell in cells}) > 1 and not _selects_evaluation(key)]
    return [
        replace(cell, options=" ".join(f"{key}={cell.overrides[key]}" for key in differ if key in cell.overrides))
        for cell in cells
    ]


def _value(cell: Cell, key: str) -> str | None:
    return cell.overrides.get(key, cell.config.get(key))


def _selects_evaluation(key: str) -> bool:
    """Return whether an override adds or removes a whole kind of evaluation, which does not change the model."""
    return key.startswith("eval.") and key.count(".") == 1


def _rank(number: str) -> Any:
    """Return the sort key of cells: finished first, then by ratio, by the number named `number`, and by folder."""
    infinite = float("inf")

    def rank(cell: Cell) -> tuple[Any, ...]:
        ratio, value = cell.ratio, cell.numbers("pruned").get(number)
        quality = infinite if value is None else value
        return cell.state != "finished", infinite if ratio is None else ratio, quality, cell.folder

    return rank
