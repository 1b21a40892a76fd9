"""Compare finished runs: configs, measured numbers, and how these numbers were measured.

A number is a measured result, such as a perplexity or an accuracy.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from string import ascii_uppercase

from pandas import DataFrame
from rich.markup import escape
from rich.text import Text

from flap.results.configs import CHOICES, FlatConfig, varying
from flap.results.number_texts import change, in_order, with_error
from flap.results.report import Report
from flap.results.run_folder import RunRecord, read_run
from flap.results.tables import Table, wide_console

LETTERS = ascii_uppercase  # runs are called A, B, C, … in the tables
NOTE = (
    "±: standard error. The error of a difference is paired by the documents or windows that both "
    "runs have seen. Bold: clear of the noise (p < 0.05 in McNemar's test of right and wrong "
    "answers, else in the paired t-test). A difference without ± is not paired: the runs have "
    "not stored values of the same documents."
)
OTHER_MODELS = (
    "Runs of different models: {}. "
    "Their perplexities can be compared only where the models have the same tokenizer."
)
OTHER_VERSIONS = "Runs of different versions, from which differences may come: {}."
OTHER_DOCUMENTS = (
    "Not measured on the same documents: {task}, of which runs leave out {left_out} documents "
    "that they have read. Their numbers are not paired."
)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the finished runs in these folders.

    Raises:
        ValueError: a run has not finished or cannot be read, or there are more than 26 runs.
    """
    if len(folders) > len(LETTERS):
        raise ValueError(f"{len(folders)} runs to compare; expected at most {len(LETTERS)}")
    runs = list(map(read_run, folders))
    for folder, run in zip(folders, runs, strict=True):
        if run.state != "finished":
            raise ValueError(f"{folder}: {run.state} ({run.error}); expected finished runs")
    return runs


def print_comparison(folders: Sequence[Path]) -> None:
    """Print what differs between finished runs: models, versions, configs and measured numbers.

    Raises:
        ValueError: see `read_runs`.
    """
    runs = read_runs(folders)
    console = wide_console()
    for letter, folder in zip(LETTERS, folders, strict=False):
        console.print(f"[bold]{letter}[/bold]  {escape(str(folder))}")
    for notice in mismatches(runs):
        console.print(escape(notice), style="bold")

    config = config_table(runs)
    console.print("\n[bold]Config[/bold]")
    console.print(config.console() if config.rows else "No difference.")
    console.print("\n[bold]Numbers of the pruned models[/bold]")
    console.print(numbers_table(runs).console(numeric=True))
    console.print(NOTE, soft_wrap=not console.is_terminal)


def config_table(runs: Sequence[RunRecord]) -> Table:
    """Return a table of the settings whose values differ between the runs.

    A setting is an item of CHOICES, such as the metric, or another config key.
    """
    configs = []
    for run in runs:
        choices = {name: str(getattr(run, name)) for name in CHOICES}
        configs.append(choices | run.config)
    keys = DataFrame(configs, dtype=object).fillna("").T
    different = keys[keys.nunique(axis="columns") > 1]
    return Table(["", *LETTERS[: len(runs)]], list(different.itertuples(name=None)))


def numbers_table(runs: Sequence[RunRecord]) -> Table:
    """Return a table of the numbers that each run has measured on its pruned model.

    The last columns show how much each number differs between the first run and every other run.
    """
    models = [run.report.evaluation["pruned"] for run in runs]
    first, *others = runs
    rows: list[list[str | Text]] = []
    for name in in_order(chain(*models), first.report.domains):
        numbers = [with_error(model, name) for model in models]
        rows.append([name, *numbers, *(_difference(first, other, name) for other in others)])
    letters = LETTERS[: len(runs)]
    return Table(["", *letters, *(f"{letter} - A" for letter in letters[1:])], rows)


def _difference(first: RunRecord, other: RunRecord, name: str) -> str | Text:
    """Format the difference of a number between two runs, in bold if the difference is significant.

    name: the name of the number, such as "boolq/acc".
    """
    before = first.report.evaluation["pruned"]
    after = other.report.evaluation["pruned"]
    paired = other.difference_to(first, name)
    if paired is None:
        return change(name, before, after)
    text = change(name, before, after, paired.error, paired.p_value)
    return Text(text, "bold" if paired.clear else "")


def mismatches(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a sentence for each way in which the models, versions or evaluations of runs differ."""
    models = sorted({run.model for run in runs if run.model})
    if len(models) > 1:
        yield OTHER_MODELS.format(", ".join(models))

    reports = [run.report for run in runs]
    versions = varying(map(versions_of, reports))
    if versions:
        different = []
        for name, values in versions.items():
            different.append(f"{name} {' and '.join(values)}")
        yield OTHER_VERSIONS.format(", ".join(different))

    for task in dict.fromkeys(chain(*(report.left_out for report in reports))):
        measured = [report for report in reports if task in report.inputs]
        if len({report.inputs[task] for report in measured}) > 1:
            numbers = sorted({report.left_out.get(task, 0) for report in measured})
            left_out = " or ".join(map("{:,}".format, numbers))
            yield OTHER_DOCUMENTS.format(task=task, left_out=left_out)

    for key, values in varying(run.config for run in runs).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def versions_of(report: Report) -> FlatConfig:
    """Return the library versions in a report, and flap's git commit if the report contains one."""
    commit = report.git.get("commit")
    return report.versions | {"commit": commit[:12]} if commit else report.versions
