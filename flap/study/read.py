"""Read the folder of a sweep into cells, and check the files in it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flap.evaluation.kept import kept_documents
from flap.reporting.report import SCHEMA
from flap.reporting.resume import BOOKKEEPING
from flap.storage.status import STATUS, STATUS_SCHEMA
from flap.study.cells import CHOICES, Cell, Study, measured

SCHEMAS = {"report.json": SCHEMA, STATUS: STATUS_SCHEMA}
FILES = ("report.md", "report.json", "layers.png", "flap.log")
UNFINISHED = "no report: still running, or killed"


def read_study(folder: Path) -> Study:
    """Read every sub-folder that has a status.json, and return the study.

    Raises:
        ValueError: the folder does not exist or has no cell, or a file has another schema.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected that of a sweep, as multirun_outputs/<time>")
    cells = [_read_cell(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if not cells:
        raise ValueError(f"{folder}: no cell in it; expected the folder of a sweep, with runs that hold a status.json")
    cells = [cell for cell in cells if not _repeated(cell, cells)]
    number = next(iter(measured(cells)), "")
    return Study(folder, _command(folder / "multirun.yaml"), tuple(sorted(_with_options(cells), key=_rank(number))))


def _read_cell(folder: Path) -> Cell:
    status = _read_json(folder / STATUS)
    state, error = status["state"], status["error"] or ""
    report = {}
    if state == "finished":
        report = _read_json(folder / "report.json")
    elif state != "failed":
        state, error = "unfinished", UNFINISHED
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
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises: ValueError: it is damaged or has another schema."""
    try:
        content = json.loads(path.read_text())
        schema = content["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a JSON object with a schema; run its cell again") from error
    expected = SCHEMAS[path.name]
    if schema != expected:
        raise ValueError(f"{path}: schema {schema}, this version reads {expected}; run its cell again, or move it away")
    return dict(content)


def _read_yaml(path: Path) -> DictConfig:
    """Return a YAML file without resolving interpolations; empty if the file is missing."""
    content = OmegaConf.load(path) if path.is_file() else OmegaConf.create({})
    assert isinstance(content, DictConfig)
    return content


def _read_overrides(path: Path, config: DictConfig) -> dict[str, str]:
    """Return the overrides of a cell, {"calibration.num_samples": "32"}, without those that are fields of `Cell`.

    A value is taken from the cell's config if it is there, because a restarted sweep overwrites Hydra's record of the
    overrides, also of a finished cell that had other values.
    """
    lines = [str(line) for line in OmegaConf.load(path)] if path.is_file() else []
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
    """Return the cells with `options` set to the overrides that differ between them."""
    keys = dict.fromkeys(key for cell in cells for key in cell.overrides)
    differ = [
        key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1 and not _selects_evaluation(key)
    ]
    return [
        replace(cell, options=" ".join(f"{key}={cell.overrides[key]}" for key in differ if key in cell.overrides))
        for cell in cells
    ]


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


def _command(path: Path) -> str:
    """Return the command line that started the sweep, from Hydra's record; empty if there is none."""
    overrides = OmegaConf.select(_read_yaml(path), "hydra.overrides")
    if overrides is None:
        return ""
    plain = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(plain, dict)
    hydra = [word for word in plain["hydra"] if word != "hydra.mode=MULTIRUN"]
    return shlex.join(["python", "-m", "flap", "-m", *plain["task"], *hydra])
