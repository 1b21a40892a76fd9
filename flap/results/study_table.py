"""The table of a study: the settings and results of each run, with the best numbers marked.

A study consists of the runs of one or more sweeps. A number is a measured result, such as a
perplexity or an accuracy.
"""

from math import isfinite
from typing import Any, Literal, NamedTuple

from flap.results.number_texts import short
from flap.results.report import Report
from flap.results.study import CHOSEN, Study

# Settings that are always shown. Any other setting is shown only if the runs differ in it.
ALWAYS_SHOWN = ("metric", "structure", "ratio")
# The heading of the column with the total seconds of all stages of a run. If a result comes from
# the cache, the seconds of its original computation count, so the run itself may have been faster.
SECONDS = "compute seconds"
# The formats of columns whose values do not come from an evaluation task.
FORMATS = {"removed": "{:.4f}", "parameters": "{:,}", "vocabulary": "{:,}", SECONDS: "{:,.1f}"}

# The mark of a measured number. Runs with the same model and the same requested size are compared.
# The best value of a number is marked "best". If values of other runs do not differ significantly
# from the best value, the best value and these values are marked "near" instead. "" means no mark.
Mark = Literal["best", "near", ""]
# The marks of all numbers in the table of a study. A key consists of the index of the run in
# `Study.runs`, and the name of the number.
Marks = dict[tuple[int, str], Mark]


class TableEntry(NamedTuple):
    """One cell of the table: its text, its mark, and a key for sorting the rows."""

    text: str = ""
    mark: Mark = ""
    # If a reader of the page sorts the table by a column, rows are sorted by the `key` of their
    # value in this column. Rows whose key is None come last.
    key: float | str | None = None


class StudyTable(NamedTuple):
    """The table of a study."""

    choices: list[str]  # headings of the columns with settings
    results: list[str]  # headings of the columns with results, which follow the settings
    rows: list[list[TableEntry]]  # a row for each run, with its settings and results
    dense: list[tuple[str, list[TableEntry]]]  # for each dense model, its name and its results


def tabulate(study: Study) -> StudyTable:
    """Return the table of a study. If the standard error of a number is known, it is shown, too."""
    choices = [name for name in CHOSEN if name in (*ALWAYS_SHOWN, *study.different)]
    results = ["removed", "parameters", *study.measured, SECONDS]
    if study.trimmed:
        results.insert(2, "vocabulary")

    marks = _marks(study)
    rows = []
    for i, run in enumerate(study.runs):
        report = run.report
        numbers = _numbers(report, "pruned", "after")
        numbers["removed"] = report.ratio.get("realised_decoder")
        numbers[SECONDS] = report.seconds.get("total")
        row = [_choice(getattr(run, name)) for name in choices]
        row += [_result(numbers, name, marks.get((i, name), "")) for name in results]
        rows.append(row)

    dense = []
    for run in study.of(study.dense):
        numbers = _numbers(run.report, "dense", "before") | {"removed": 0.0}
        row = [_result(numbers, name) for name in results]
        dense.append((study.dense_name(run.model), row))
    return StudyTable(choices, results, rows, dense)


def _choice(value: Any) -> TableEntry:
    return TableEntry() if value is None else TableEntry(str(value), key=value)


def _result(numbers: dict[str, Any], name: str, mark: Mark = "") -> TableEntry:
    value = numbers.get(name)
    error = numbers.get(f"{name}_stderr")
    if value is None:
        return TableEntry()
    if not isfinite(value):
        return TableEntry("not finite")
    if name in FORMATS:
        text = FORMATS[name].format(value)
    elif error is None:
        text = short(value)
    else:
        text = f"{value:.4f} ± {error:.4f}"
    return TableEntry(text, mark, value)


def _numbers(report: Report, model: str, moment: str) -> dict[str, Any]:
    """Return a model's measured numbers, number of parameters and vocabulary size.

    model: "dense" or "pruned".
    moment: "before" for the dense model, and "after" for the pruned model.
    """
    return report.evaluation[model] | {
        "parameters": report.parameters.get(f"total_{moment}"),
        "vocabulary": report.vocabulary.get(moment),
    }


def _marks(study: Study) -> Marks:
    marks: Marks = {}
    for _, rows in study.results.groupby(["model", "requested"], dropna=False, sort=False):
        for name in study.measured:
            better = study.better(name)
            if better:
                values = rows[f"pruned/{name}"].dropna()
                ranked = values.sort_values(ascending=better == "lower", kind="stable")
                marks |= _marks_of(study, list(ranked.index), name)
    return marks


def _marks_of(study: Study, ranked: list[int], name: str) -> Marks:
    """Return the marks of one measured number in runs that are compared with each other.

    "best" means that a run's value is significantly better than the values of all other runs.
    "near" means that a run's value does not differ significantly from the best value. If another
    value is marked "near", the best value is also marked "near".

    If two runs have not stored the results of the same documents, it is unknown whether the
    difference between these runs is significant. If this is unknown for the best run and another
    run, no value is marked "best".

    ranked: the indices of the runs that have measured the number, from the best to the worst value.
    name: the name of the number.
    """
    if len(ranked) < 2:
        return {}

    best, *others = ranked
    near = []
    unknown = False
    for i in others:
        difference = study.runs[i].difference_to(study.runs[best], name)
        if difference is None:
            unknown = True
        elif not difference.clear:
            near.append(i)

    if near:
        return {(i, name): "near" for i in (best, *near)}
    return {} if unknown else {(best, name): "best"}
