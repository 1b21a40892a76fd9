"""The cells of a study as text: study.csv for programs, study.md for people."""

import csv
import io
from html import escape
from typing import Any

from flap.reporting.study.cells import Cell, Study
from flap.reporting.study.table import tabulate


def csv_text(study: Study) -> str:
    """study.csv: one row a cell, numbers unrounded; empty = not measured, nan = not finite."""
    columns, rows = records(study)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def records(study: Study) -> tuple[list[str], list[list[Any]]]:
    """All that the cells hold, as columns and one row a cell; None = not measured, "nan" = not finite."""
    names = {when: dict.fromkeys(n for cell in study.cells for n in cell.numbers(when)) for when in ("dense", "pruned")}
    measured = [(when, name) for when, of_model in names.items() for name in of_model]
    facts = ["cell", "state", "model", "method", "metric", "structure", "options"]
    numbers = ["ratio", "realised_ratio", "seed", "parameters_after"]
    last = ["seconds_total", "statistics_cache", "calibration_domain", "error"]
    rows = [
        [
            cell.folder, cell.state, cell.model, cell.method, cell.metric, cell.structure, cell.options,
            cell.ratio, cell.value("ratio", "realised_decoder"), cell.seed, cell.value("parameters", "total_after"),
            *(_plain(cell, when, name) for when, name in measured),
            cell.value("seconds", "total"), cell.report.get("statistics_cache"), _in_domain(cell), cell.error,
        ]
        for cell in study.cells
    ]  # fmt: skip
    return [*facts, *numbers, *(f"{when}/{name}" for when, name in measured), *last], rows


def _in_domain(cell: Cell) -> str:
    """The numbers that are measured on text like the calibration's."""
    names = (name for name in cell.numbers("pruned") if not name.endswith("_stderr"))
    return "; ".join(name for name in names if cell.domain(name) == "calibration")


def _plain(cell: Cell, when: str, name: str) -> Any:
    numbers = cell.numbers(when)
    return "nan" if name in numbers and numbers[name] is None else numbers.get(name)


def markdown(study: Study, title: str, pictures: dict[str, str]) -> str:
    """study.md: the table, the cells without a result, and the plots. `pictures`: caption of each file."""
    table = tabulate(study)
    heads = [*table.choices, *table.results, "cell"]
    lines = [f"# {_inline(title)}", "", _line(heads), "|" + "---|" * len(heads)]
    lines += [_line([*(value.text for value in row.values), "dense"]) for row in table.dense]
    for row in table.rows:
        if row.cell.state == "finished":
            values = [f"**{value.text}**" if value.best else value.text for value in row.values]
            lines.append(_line([*values, row.cell.folder]))
    missing = [row.cell for row in table.rows if row.cell.state != "finished"]
    lines += ["", "Bold: best at its ratio.", *_domains(study), *([""] if missing else [])]
    lines += [f"- {cell.state}: {_inline(cell.folder)}: {_inline(cell.error)}" for cell in missing]
    lines += [f"\n![{_inline(caption)}]({file})\n\n{_inline(caption)}" for file, caption in pictures.items()]
    return "\n".join(lines) + "\n"


def _domains(study: Study) -> list[str]:
    """A sentence for each domain, where the cells say of which one their numbers are."""
    what = {"calibration": "On text like the calibration's", "other": "On other text"}
    names = {domain: [name for name in study.measured if study.domain(name) == domain] for domain in what}
    return [f"{what[domain]}: {_inline(', '.join(of))}." for domain, of in names.items() if of]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(map(_inline, values))} |"


def _inline(text: str) -> str:
    """Text that neither ends a row of the table nor becomes a tag."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
