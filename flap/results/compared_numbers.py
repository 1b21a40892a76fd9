"""What runs have measured and what they cost, each with its difference to the first run."""

from collections.abc import Callable, Iterator, Sequence

from rich.filesize import decimal

from flap.evaluation.errors import Difference
from flap.evaluation.kept import differences
from flap.reporting import Report
from flap.reporting.numbers import change, is_efficiency, side_by_side
from flap.reporting.table import measured_number
from flap.results.compared import Subject
from flap.results.tables import Entry, Table

Run = tuple[Subject, Report]
NOTE = (
    "±: standard error; that of a difference is paired by the documents or windows that both runs have seen. Bold: "
    "clear of the noise (p < 0.05 in McNemar's test of right and wrong answers, else in the paired t-test). A "
    "difference without ± is not paired: the runs have kept no documents of it, or not the same ones."
)


def measured(subjects: Sequence[Subject]) -> Table:
    """Return the table of the pruned models' numbers, and of the dense model's where all runs agree on them."""
    runs = _runs(subjects)
    found = [differences(runs[0][0].documents, run.documents, report.averages) for run, report in runs]
    names = [name for _, report in runs for name in report.evaluation["pruned"] if not name.endswith("_stderr")]
    ordered = side_by_side(dict.fromkeys(names), runs[0][1].domains if runs else {})
    dense = _common_dense([report for _, report in runs], ordered)
    rows = [(Entry(name), *((Entry(dense[name]),) if dense else ()), *_across(name, runs, found)) for name in ordered]
    heads = ("", *(("dense",) if dense else ()), *_heads(runs))
    return Table("Numbers of the pruned models", heads, rows, NOTE if rows else "", numeric=True)


def _runs(subjects: Sequence[Subject]) -> list[Run]:
    return [(subject, subject.report) for subject in subjects if subject.report is not None]


def _heads(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the headings: A, B, B - A, C, C - A …"""
    for i, (run, _) in enumerate(runs):
        yield run.letter
        if i:
            yield f"{run.letter} - {runs[0][0].letter}"


def _across(name: str, runs: Sequence[Run], found: Sequence[dict[str, Difference]]) -> Iterator[Entry]:
    """Yield a number of each run, and its difference to the first run."""
    first = runs[0][1].evaluation["pruned"]
    for i, (_, report) in enumerate(runs):
        numbers, noise = report.evaluation["pruned"], found[i].get(name)
        yield Entry(measured_number(numbers, name))
        if not i:
            continue
        if is_efficiency(name):
            yield Entry(relative(first.get(name), numbers.get(name)))
            continue
        error, p_value = (None, None) if noise is None else (noise.error, noise.p_value)
        text = change(name, first.get(name), numbers.get(name), error, p_value)
        yield Entry(text, noise is not None and noise.clear)


def relative(one: float | None, other: float | None) -> str:
    """Return how much larger the other is: "+12.5%", or from twice as large on "3.1 times"."""
    if not one or other is None:
        return ""
    return f"{other / one:,.1f} times" if other >= 2 * one else f"{other / one - 1:+.1%}"


def _common_dense(reports: Sequence[Report], names: Sequence[str]) -> dict[str, str]:
    """Return the dense model's numbers as text, if all runs have the same ones of it."""
    shown = [{name: measured_number(report.evaluation["dense"], name) for name in names} for report in reports]
    return shown[0] if shown and all(one == shown[0] for one in shown) else {}


def costs(subjects: Sequence[Subject]) -> Table:
    """Return the table of sizes, seconds and memory."""
    runs = _runs(subjects)
    stages = sorted(dict.fromkeys(stage for _, report in runs for stage in report.seconds), key="total".__eq__)  # last
    rows: list[tuple[str, Callable[[Report], float | None], Callable[[float], str]]] = [
        ("parameters", lambda report: report.parameters["total_after"], "{:,}".format),
        ("decoder removed", lambda report: report.ratio["realised_decoder"], "{:.4f}".format),
        *((f"seconds, {stage}", lambda report, s=stage: report.seconds.get(s), "{:,.1f}".format) for stage in stages),
        *(
            (
                f"peak memory, {place}",
                lambda report, p=place: report.peak_memory_bytes.get(p),
                lambda n: decimal(int(n)),
            )
            for place in ("host", "device")
        ),
    ]
    made = [(Entry(name), *_cost(runs, value, show)) for name, value, show in rows]
    shown = [row for row in made if any(entry.text for entry in row[1:])]
    return Table("Size, seconds and memory", ("", *_heads(runs)), shown, numeric=True)


def _cost(
    runs: Sequence[Run], value: Callable[[Report], float | None], show: Callable[[float], str]
) -> Iterator[Entry]:
    for i, (_, report) in enumerate(runs):
        found = value(report)
        yield Entry("" if found is None else show(found))
        if i:
            yield Entry(relative(value(runs[0][1]), found))
