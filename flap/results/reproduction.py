"""Compare the report of a repeated run with the report of the original run.

A number is a measured result, such as a perplexity, or a number of parameters. If a run trains its
pruned model, this model is called "compressed" before the training, and "pruned" after it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from flap.evaluation.base import Numbers
from flap.evaluation.result_files import RESULTS, Results
from flap.results.comparison import versions_of
from flap.results.number_texts import in_order, is_efficiency, with_error
from flap.results.report import Report
from flap.results.run_folder import RunRecord
from flap.results.tables import Table, wide_console

EQUAL = 1e-6  # the largest relative difference of two numbers that count as equal
# The largest relative difference in the number of parameters that is attributed to rounding. On
# another machine, floating-point rounding can change the order of heads or neurons with almost
# equal scores, and therefore also the number of parameters that are removed.
SAME_SIZE = 1e-3
# Numbers of the evaluation `efficiency` that do not depend on the machine.
SIZES = ("efficiency/parameters", "efficiency/checkpoint_bytes", "efficiency/prefill_macs")

Verdict = Literal["equal", "within the error", "different", "not compared"]


class Comparison(NamedTuple):
    """The values of a number in the original and in the repeated run, and a verdict."""

    # the measured model: "dense", "compressed" or "pruned"; "parameters" for numbers of parameters
    # and for the numbers of heads, neurons and experts of layers
    model: str
    name: str  # the name of the number, such as "boolq/acc"
    old: str  # the number in the original run with its standard error; empty if it is missing
    new: str  # the number in the repeated run with its standard error; empty if it is missing
    verdict: Verdict


def read_finished(path: Path) -> RunRecord:
    """Read a finished run from its folder, or from a report.json alone.

    Raises:
        ValueError: The report is missing or damaged.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no report of a finished run; give its folder or report.json")
    report = Report.load(file)
    documents = Results(file.parent / RESULTS).documents(report.evaluation["pruned"])
    return RunRecord(str(path), report=report, documents=documents)


def compare_runs(old: RunRecord, new: RunRecord) -> list[Comparison]:
    """Compare every number of two runs.

    Two numbers are equal if their relative difference is at most one millionth. Two numbers are
    within the error if they differ by at most one standard error of the original number. For some
    numbers of the pruned model, such as a perplexity, the original report has no standard error.
    For these numbers, the standard error of the difference between the pruned and the dense model
    is used instead. A number of the pruned model is also within the error if both runs have stored
    the results of the same documents, and a paired test of these results finds no significant
    difference. Numbers of parameters are within the error if their relative difference is at most
    `SAME_SIZE`.

    Speeds, times and amounts of memory depend on the machine, so they are not compared.
    """
    comparisons = [_layers(old.report, new.report)]
    models = _models(new.report)
    for model, before in _models(old.report).items():
        after = models.get(model, {})
        errors = old.report.difference_stderr if model == "pruned" else {}
        for name in in_order(before | after, {}):
            error = before.get(f"{name}_stderr", errors.get(name, 0.0))
            verdict = _verdict(name, before, after, error)
            if verdict == "different" and model == "parameters" and _close(before, after, name):
                verdict = "within the error"
            if verdict == "different" and model == "pruned":
                difference = new.difference_to(old, name)
                if difference is not None and not difference.clear:
                    verdict = "within the error"
            shown = (with_error(before, name), with_error(after, name))
            comparisons.append(Comparison(model, name, *shown, verdict))
    return comparisons


def _models(report: Report) -> dict[str, Numbers]:
    """Return the measured numbers of each model: "dense", "pruned", and perhaps "compressed".

    The numbers of parameters have the key "parameters".
    """
    return {"parameters": {**report.parameters}, **report.evaluation}


def _layers(old: Report, new: Report) -> Comparison:
    same = sum(a == b for a, b in zip(old.layers, new.layers, strict=False))
    verdict: Verdict = "different"
    if old.layers == new.layers:
        verdict = "equal"
    elif _close(old.parameters, new.parameters, "total_after"):
        verdict = "within the error"
    total = str(len(old.layers))
    return Comparison("parameters", "layers as wide as before", total, str(same), verdict)


def _close(old: Mapping[str, float], new: Mapping[str, float], name: str) -> bool:
    return name in old and name in new and math.isclose(old[name], new[name], rel_tol=SAME_SIZE)


def _verdict(name: str, old: Numbers, new: Numbers, error: float) -> Verdict:
    before = old.get(name)
    after = new.get(name)
    if before is None or after is None:
        return "different"
    if math.isclose(before, after, rel_tol=EQUAL):
        return "equal"
    if is_efficiency(name) and name not in SIZES:
        return "not compared"
    return "within the error" if abs(after - before) <= error else "different"


def other_versions(old: Report, new: Report) -> list[str]:
    """Describe each library version, device or commit that differs between two reports."""
    before = versions_of(old) | {"device": old.device}
    after = versions_of(new) | {"device": new.device}
    changed = []
    for name in before | after:
        was = before.get(name, "unknown")
        now = after.get(name, "unknown")
        if was != now:
            changed.append(f"{name} {was} -> {now}")
    return changed


def print_reproduction(old: RunRecord, new: RunRecord) -> bool:
    """Print both runs side by side, and return whether no number has the verdict "different"."""
    console = wide_console()
    comparisons = compare_runs(old, new)
    console.print(Table(("", "number", "old", "new", "verdict"), comparisons).console())
    versions = other_versions(old.report, new.report)
    if versions:
        console.print(f"Other versions: {'; '.join(versions)}.", soft_wrap=True)

    counts = Counter(comparison.verdict for comparison in comparisons)
    different = counts["different"]
    compared = counts.total() - counts["not compared"]
    if different:
        console.print(f"Not reproduced: {different} of {compared} numbers are different.")
    elif counts["equal"] == compared:
        console.print(f"Reproduced: all {compared} numbers are equal.")
    else:
        console.print(
            f"Reproduced: {counts['equal']} of {compared} numbers are equal, and the "
            "others are within their errors.",
            soft_wrap=True,
        )
    return not different
