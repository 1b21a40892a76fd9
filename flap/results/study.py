"""The data of a study: its cells, their choices and their reports."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flap.evaluation.kept import Kept
from flap.reporting.numbers import domain_of, is_efficiency, is_perplexity

CHOICES = ("model", "method", "metric", "structure", "ratio", "seed")  # all other choices that differ are in `options`


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. A choice is None if its files do not say it; `report` is empty unless the run finished."""

    folder: str  # as the page links to it: relative to the study's folder
    state: str  # finished, failed, damaged, unfinished
    error: str
    files: tuple[str, ...]
    overrides: dict[str, str]
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    structure: str | None = None
    ratio: float | None = None
    seed: int | None = None
    options: str = ""  # other overrides that differ between the cells: "calibration.num_samples=32"
    report: dict[str, Any] = field(default_factory=dict)
    documents: Kept = field(default_factory=dict)  # of the pruned model
    sweep: str = ""  # the name of its sweep, in a study of several
    progress: str = ""  # of a run that has not finished: "calibrate 12 of 64 at 14:05:09"
    so_far: dict[str, float | None] = field(default_factory=dict)  # the pruned model's numbers of an unfinished run
    better: Mapping[str, str] = field(
        default_factory=dict
    )  # which values of a number are, "lower" or "higher", if known
    config: dict[str, str] = field(default_factory=dict)  # by dotted key (`flap.results.config_keys`)

    @property
    def number(self) -> str:
        """Return the job's number, with which Hydra begins the folder's name; if there is none, the whole name."""
        name = self.folder.rpartition("/")[2]
        number, _, _ = name.partition("_")
        return number if number.isdigit() else name

    @property
    def layer_errors(self) -> list[float | None]:
        """Return the error of the hidden states after each layer; empty if it was not measured."""
        return list(self.report.get("layer_errors", []))

    @property
    def dense_identity(self) -> str:
        """Return what the dense numbers depend on: the model, its path and type, and how it was measured."""
        config = self.report.get("config", {})
        return json.dumps([self.model, config.get("model"), config.get("eval")], sort_keys=True)

    def numbers(self, which: str) -> dict[str, float | None]:
        """Return the numbers of a model, "dense" or "pruned"; None: not finite."""
        so_far = {"pruned": self.so_far}
        return dict(self.report.get("evaluation", so_far).get(which, {}))

    def domain(self, name: str) -> str:
        """Return the domain of a number's text, "calibration" or "other"; empty if the report does not say."""
        return domain_of(name, self.report.get("domains", {}))

    def value(self, section: str, name: str) -> Any:
        """Return an entry of the report, or None if it is missing: value("seconds", "total")."""
        return self.report.get(section, {}).get(name)


@dataclass(frozen=True)
class Study:
    """The cells of one or more sweeps, sorted by ratio, then by the first number; those without a result are last."""

    folder: Path  # where its files are written
    commands: tuple[str, ...]  # that started the sweeps, of those with a multirun.yaml
    cells: tuple[Cell, ...]
    planned: int = 0  # how many cells the sweeps have once all have begun; 0: unknown

    @property
    def finished(self) -> tuple[Cell, ...]:
        """Return the finished cells."""
        return tuple(cell for cell in self.cells if cell.state == "finished")

    @property
    def measured(self) -> list[str]:
        """Return the names of all measured numbers, as `measured` sorts them."""
        return measured(self.cells)

    def domain(self, name: str) -> str:
        """Return the domain of a number's text; empty if the cells disagree, as with different calibration texts."""
        return _agreed(cell.domain(name) for cell in self.finished)

    def better(self, name: str) -> str:
        """Return which values of a number are better, "lower" or "higher"; empty if no cell says, or they disagree."""
        return _agreed(cell.better.get(name, "") for cell in self.cells)

    def values(self, name: str) -> list[Any]:
        """Return the distinct values of a field of the cells, sorted; unknown values are left out."""
        return sorted({getattr(cell, name) for cell in self.cells} - {None, ""})

    def dense(self) -> list[Cell]:
        """Return one finished cell for each dense model and way to measure it: its cells share the dense numbers."""
        return list({cell.dense_identity: cell for cell in reversed(self.finished)}.values())[::-1]


def _agreed(values: Iterable[str]) -> str:
    """Return the only value that is not empty; empty if there is none, or several."""
    distinct = set(values) - {""}
    return distinct.pop() if len(distinct) == 1 else ""


def measured(cells: Iterable[Cell]) -> list[str]:
    """Return the names of the pruned models' numbers, no standard errors; perplexities first, efficiency last."""
    names = dict.fromkeys(name for cell in cells for name in cell.numbers("pruned") if not name.endswith("_stderr"))
    return sorted(names, key=lambda name: (not is_perplexity(name), is_efficiency(name)))
