"""Whether a difference between runs is real: paired differences, and the marks of what is best, clear of the noise."""

from collections.abc import Iterable, Iterator
from typing import Literal

from pandas import DataFrame

from flap.evaluation.errors import Difference, differences
from flap.results.run_folder import RunRecord
from flap.results.study import Study

Mark = Literal["best", "near", "clear", ""]  # "clear": a difference that is clear of the noise


def paired(one: RunRecord, other: RunRecord, names: Iterable[str]) -> dict[str, Difference]:
    """Return the difference other - one of each number that both runs have kept of the same documents.

    That of an average over tasks is from those of its tasks, if both runs have averaged the same ones.
    """
    averages = other.report.get("averages", {})
    same = {name: parts for name, parts in averages.items() if one.report.get("averages", {}).get(name) == parts}
    wanted = {part for name in names for part in same.get(name, [name] if name not in averages else [])}
    shared = [key for key in other.documents if key in one.documents and key[0] in wanted]
    a, b = ({key[0]: run.documents[key] for key in shared} for run in (one, other))
    return differences(a, b, same)


def marks(study: Study) -> dict[tuple[int, str], Mark]:
    """Return the mark of each quality number, by the run's row in `study.frame` and the number's name.

    "best": it is better than every other run's of the same model and ratio, clear of the noise. "near": it is within
    the noise of the best number, or is the best and has others within its noise. Where the difference to the best has
    no known error, because the runs have kept no documents or not the same ones, nothing is marked "best". Of a number
    of which the runs do not say whether higher or lower values are better, nothing is marked.
    """
    alike = [rows for _, rows in study.results.groupby(["model", "ratio"], dropna=False, sort=False)]
    names = {name: better for name in study.measured if (better := study.better(name))}
    return dict(mark for name, better in names.items() for rows in alike for mark in _marks(study, rows, name, better))


def _marks(study: Study, rows: DataFrame, name: str, better: str) -> Iterator[tuple[tuple[int, str], Mark]]:
    values = rows[f"pruned/{name}"].dropna()
    if len(values) < 2:
        return
    best = values.idxmin() if better == "lower" else values.idxmax()
    found = {i: paired(study.runs[best], study.runs[i], [name]).get(name) for i in values.index if i != best}
    near = [i for i, one in found.items() if one is not None and not one.clear]
    yield from (((i, name), "near") for i in near)
    if near or None not in found.values():
        yield (best, name), "near" if near else "best"
