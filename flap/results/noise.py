"""Which numbers of a study are the best, clear of the noise, and which are within the noise of the best."""

from collections.abc import Iterator
from typing import Any, Literal

from flap.evaluation.errors import Difference
from flap.evaluation.kept import differences
from flap.results.study import Cell, Study

Mark = Literal["best", "near", ""]


def marks(study: Study) -> dict[tuple[str, str], Mark]:
    """Return the mark of each quality number, by the cell's folder and the number's name.

    "best": it is better than every other cell's of the same model and ratio, clear of the noise. "near": it is within
    the noise of the best number, or is the best and has others within its noise. Where the difference to the best has
    no known error, because the runs have kept no documents or not the same ones, nothing is marked "best". Of a number
    of which the runs do not say whether higher or lower values are better, nothing is marked.
    """
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in study.finished:
        groups.setdefault((cell.model, cell.ratio), []).append(cell)
    choose = {"lower": min, "higher": max}
    names = {name: choose[better] for name in study.measured if (better := study.better(name))}
    return {
        mark: value for cells in groups.values() for name in names for mark, value in _marks(cells, name, names[name])
    }


def _marks(cells: list[Cell], name: str, choose: Any) -> Iterator[tuple[tuple[str, str], Mark]]:
    values = [(value, cell) for cell in cells if (value := cell.numbers("pruned").get(name)) is not None]
    if len(values) < 2:
        return
    _, best = choose(values, key=lambda pair: pair[0])
    found = [(cell, _difference(best, cell, name)) for _, cell in values if cell is not best]
    near = [cell for cell, one in found if one is not None and not one.clear]
    yield from (((cell.folder, name), "near") for cell in near)
    if near or all(one is not None for _, one in found):
        yield (best.folder, name), "near" if near else "best"


def _difference(one: Cell, other: Cell, name: str) -> Difference | None:
    """Return the difference other - one of a number, paired by document; None if it cannot be paired."""
    parts, others = (cell.report.get("averages", {}).get(name, [name]) for cell in (one, other))
    if parts != others:
        return None
    a, b = ({key: cell.documents[key] for key in cell.documents if key[0] in parts} for cell in (one, other))
    return differences(a, b, {name: parts}).get(name)
