"""The text files of a study: study.csv for programs, study.md for people."""

import csv
import io
from html import escape
from typing import Any

from flap.results.study import Cell, Study
from flap.results.study_table import tabulate

MARKED = {"best": "**{}**", "near": "{} ≈", "": "{}"}
LEGEND = (
    "Bold: best at its ratio, clear of the noise of all others. ≈: the best, or within the noise of the best (p ≥ "
    "0.05, paired by document). Where the runs have not kept the same documents, or do not say which values are "
    "better, nothing is marked."
)


def csv_text(study: Study) -> str:
    """Return study.csv: one row for each cell, numbers unrounded; empty = not measured, nan = not finite."""
    columns, rows = records(study)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def records(study: Study) -> tuple[list[str], list[list[Any]]]:
    """Return the data of the cells: column names, and a row for each cell; None = not measured, "nan" = not finite."""
    names = {
        which: dict.fromkeys(name for cell in study.cells for name in cell.numbers(which))
        for which in ("dense", "pruned")
    }
    measured = [(which, name) for which, model_names in names.items() for name in model_names]
    sweep = ["sweep"] if study.values("sweep") else []
    facts = ["cell", "state", *sweep, "model", "method", "metric", "structure", "options"]
    numbers = ["ratio", "realised_ratio", "seed", "parameters_after"]
    last = ["seconds_total", "statistics_cache", "calibration_domain", "error"]
    rows = [
        [
            *[cell.folder, cell.state, cell.sweep][: 2 + len(sweep)],
            cell.model, cell.method, cell.metric, cell.structure, cell.options,
            cell.ratio, cell.value("ratio", "realised_decoder"), cell.seed, cell.value("parameters", "total_after"),
            *(_plain(cell, which, name) for which, name in measured),
            cell.value("seconds", "total"), cell.report.get("statistics_cache"), _in_domain(cell), cell.error,
        ]
        for cell in study.cells
    ]  # fmt: skip
    return [*facts, *numbers, *(f"{which}/{name}" for which, name in measured), *last], rows


def _in_domain(cell: Cell) -> str:
    """Return the names of the numbers that were measured on text of the calibration's domain."""
    names = (name for name in cell.numbers("pruned") if not name.endswith("_stderr"))
    return "; ".join(name for name in names if cell.domain(name) == "calibration")


def _plain(cell: Cell, which: str, name: str) -> Any:
    numbers = cell.numbers(which)
    return "nan" if name in numbers and numbers[name] is None else numbers.get(name)


def markdown(study: Study, title: str, pictures: dict[str, str]) -> str:
    """Return study.md: the table, the cells without a result, and the plots. pictures: the caption of each file."""
    table = tabulate(study)
    heads = [*table.choices, *table.results, "cell"]
    lines = [f"# {_inline(title)}", "", _line(heads), "|" + "---|" * len(heads)]
    lines += [_line([*(value.text for value in row.values), "dense"]) for row in table.dense]
    for row in table.rows:
        if row.cell.state == "finished":
            values = [MARKED[value.mark].format(value.text) for value in row.values]
            lines.append(_line([*values, row.cell.folder]))
    missing = [row.cell for row in table.rows if row.cell.state != "finished"]
    lines += ["", LEGEND, *_domains(study), *([""] if missing else [])]
    lines += [f"- {cell.state}: {_inline(cell.folder)}: {_inline(cell.error)}" for cell in missing]
    lines += [f"\n![{_inline(caption)}]({file})\n\n{_inline(caption)}" for file, caption in pictures.items()]
    return "\n".join(lines) + "\n"


def _domains(study: Study) -> list[str]:
    """Return a sentence for each domain, with the names of its numbers."""
    openings = {"calibration": "On text like the calibration's", "other": "On other text"}
    names = {domain: [name for name in study.measured if study.domain(name) == domain] for domain in openings}
    return [f"{openings[domain]}: {_inline(', '.join(measured))}." for domain, measured in names.items() if measured]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(map(_inline, values))} |"


def _inline(text: str) -> str:
    """Return text on one line, with `|` and HTML escaped, so that it is safe in a Markdown table."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
