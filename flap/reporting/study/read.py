"""From the folder of a sweep to its cells; here alone the files that others wrote are checked."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flap.reporting.report import SCHEMA
from flap.reporting.resume import BOOKKEEPING
from flap.reporting.study.cells import CHOICES, Cell, Study, measured
from flap.status import STATUS, STATUS_SCHEMA

SCHEMAS = {"report.json": SCHEMA, STATUS: STATUS_SCHEMA}
FILES = ("report.md", "report.json", "layers.png", "flap.log")
UNFINISHED = "no report: still running, or killed"


def read_study(folder: Path) -> Study:
    """Read every sub-folder that has a status.json.

    Raises:
        ValueError: no such folder, no cell in it, or a file of another schema; one line that names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected that of a sweep, as multirun_outputs/<time>")
    cells = [_read_cell(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))]
    if not cells:
        raise ValueError(f"{folder}: no cell in it; expected the folder of a sweep, with runs that hold a status.json")
    cells = [cell for cell in cells if not _done_elsewhere(cell, cells)]
    first = next(iter(measured(cells)), "")
    return Study(folder, _command(folder / "multirun.yaml"), tuple(sorted(_with_options(cells), key=_rank(first))))


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
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        schema = content["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a JSON object with a schema; run its cell again") from error
    reads = SCHEMAS[path.name]
    if schema != reads:
        raise ValueError(f"{path}: schema {schema}, this version reads {reads}; run its cell again, or move it away")
    return dict(content)


def _read_yaml(path: Path) -> DictConfig:
    """Unresolved; empty where there is no such file."""
    content = OmegaConf.load(path) if path.is_file() else OmegaConf.create({})
    assert isinstance(content, DictConfig)
    return content


def _read_overrides(path: Path, config: DictConfig) -> dict[str, str]:
    """{"calibration.num_samples": "32"}, without the choices that have a field of their own.

    A value is that of the cell's config where it has one: starting a sweep again in its folder makes Hydra write its
    record anew, also over that of a cell that was finished with other values and stays.
    """
    lines = [str(line) for line in OmegaConf.load(path)] if path.is_file() else []
    pairs = {key.lstrip("+~"): value for key, _, value in (line.partition("=") for line in lines)}
    keys = [key for key in pairs if key.removesuffix(".name") not in CHOICES and key.split(".")[0] not in BOOKKEEPING]
    return {key: _plain(OmegaConf.select(config, key), pairs[key]) for key in keys}


def _plain(value: Any, otherwise: str) -> str:
    """A leaf of the config as text; of a group that was chosen, or a key that is not there, what was typed."""
    return otherwise if value is None or OmegaConf.is_dict(value) else str(value)


def _done_elsewhere(cell: Cell, cells: list[Cell]) -> bool:
    """Whether a cell without a result was run again under another job number, and finished."""

    def run(one: Cell) -> tuple[Any, ...]:
        return one.folder.partition("_")[2], one.overrides

    return cell.state != "finished" and any(one.state == "finished" and run(one) == run(cell) for one in cells)


def _with_options(cells: list[Cell]) -> list[Cell]:
    """Say in each cell's `options` what else tells it from the others."""
    keys = dict.fromkeys(key for cell in cells for key in cell.overrides)
    differ = [key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1 and not _leaves_out(key)]
    return [
        replace(cell, options=" ".join(f"{key}={cell.overrides[key]}" for key in differ if key in cell.overrides))
        for cell in cells
    ]


def _leaves_out(key: str) -> bool:
    """Whether an override says of one kind of evaluation that it is (not) done: the models are the same without it."""
    return key.startswith("eval.") and key.count(".") == 1


def _rank(first: str) -> Any:
    infinite = float("inf")

    def rank(cell: Cell) -> tuple[Any, ...]:
        ratio, value = cell.ratio, cell.numbers("pruned").get(first)
        unknown = infinite if value is None else value
        return cell.state != "finished", infinite if ratio is None else ratio, unknown, cell.folder

    return rank


def _command(path: Path) -> str:
    """The command line that started the sweep, from Hydra's record of it."""
    overrides = OmegaConf.select(_read_yaml(path), "hydra.overrides")
    if overrides is None:
        return ""
    plain = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(plain, dict)
    hydra = [word for word in plain["hydra"] if word != "hydra.mode=MULTIRUN"]
    return shlex.join(["python", "-m", "flap", "-m", *plain["task"], *hydra])
