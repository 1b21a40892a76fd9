"""A sweep as values: its cells, the choices that made them, and their reports."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flap.reporting.numbers import domain_of, is_efficiency, is_perplexity

CHOICES = ("model", "method", "metric", "structure", "ratio", "seed")  # options: all else that differs


@dataclass(frozen=True)
class Cell:
    """One run of the sweep. A choice is None where the run left no trace of it; `report` is empty unless finished."""

    folder: str
    state: str  # finished, failed, unfinished
    error: str
    files: tuple[str, ...]
    overrides: dict[str, str]
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    structure: str | None = None
    ratio: float | None = None
    seed: int | None = None
    options: str = ""  # further overrides that differ between the cells: "calibration.num_samples=32"
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> str:
        """The job's number in the sweep, with which Hydra begins the folder's name; else the whole name."""
        number, _, _ = self.folder.partition("_")
        return number if number.isdigit() else self.folder

    def numbers(self, when: str) -> dict[str, float | None]:
        """The evaluation of the model, "dense" or "pruned"; None: not finite."""
        return dict(self.report.get("evaluation", {}).get(when, {}))

    def domain(self, name: str) -> str:
        """Whether a number is of the "calibration" text's domain or "other"; empty where the report does not say."""
        return domain_of(name, self.report.get("domains", {}))

    def value(self, section: str, name: str) -> Any:
        """One entry of the report, None where there is none: value("seconds", "total")."""
        return self.report.get(section, {}).get(name)


@dataclass(frozen=True)
class Study:
    """A sweep. The cells come by ratio, then first perplexity; those without a result come last."""

    folder: Path
    command: str  # empty where the folder has no multirun.yaml
    cells: tuple[Cell, ...]

    @property
    def finished(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.state == "finished")

    @property
    def measured(self) -> list[str]:
        return measured(self.cells)

    def domain(self, name: str) -> str:
        """The domain of a number, empty where cells disagree: they were calibrated on different texts."""
        found = {cell.domain(name) for cell in self.finished} - {""}
        return found.pop() if len(found) == 1 else ""

    def values(self, name: str) -> list[Any]:
        """The different values of a field of the cells, sorted; cells that leave it unknown are passed over."""
        return sorted({getattr(cell, name) for cell in self.cells} - {None, ""})

    def dense(self) -> list[Cell]:
        """One finished cell for each model: the dense numbers are the same in all of them."""
        return list({cell.model: cell for cell in reversed(self.finished)}.values())[::-1]


def measured(cells: Iterable[Cell]) -> list[str]:
    """Names of all numbers of the pruned models but standard errors, perplexities first and efficiency last."""
    names = dict.fromkeys(name for cell in cells for name in cell.numbers("pruned") if not name.endswith("_stderr"))
    return sorted(names, key=lambda name: (not is_perplexity(name), is_efficiency(name)))
