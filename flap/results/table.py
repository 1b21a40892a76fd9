"""The report for people: two tables, on the console and in report.md."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flap.results.notices import notices
from flap.results.numbers import change, decimals, domain_of, side_by_side
from flap.results.report import Report

Row = tuple[str, ...]
UNITS = {"query_heads": "query heads", "kv_heads": "KV heads", "neurons": "neurons", "experts": "experts"}


def tables(report: Report) -> list[list[Row]]:
    """Return the tables, each with its headings as first row: the measured numbers, if there are any, and the facts."""
    return [table for table in (measured(report), _facts(report)) if len(table) > 1]


def measured(report: Report) -> list[Row]:
    """Return the numbers of the models, what pruning changed, and the domain of each text, if it is known.

    A model that was trained after compression has its numbers of before, too, and what training changed. Standard
    errors stand beside their numbers, as 0.650 ± 0.062.
    """
    dense, pruned = report.evaluation["dense"], report.evaluation["pruned"]
    models = [which for which in ("dense", "compressed", "pruned") if which in report.evaluation]
    rows: list[Row] = [("", *models, *(f"pruned - {before}" for before in models[:-1]), "domain")]
    names = [name for name in dense | pruned if not name.endswith("_stderr")]
    for name in side_by_side(names, report.domains):
        changes = (_change(report, name, before) for before in models[:-1])
        numbers = (measured_number(report.evaluation[which], name) for which in models)
        rows.append((name, *numbers, *changes, domain_of(name, report.domains)))
    return rows if report.domains else [row[:-1] for row in rows]


def _change(report: Report, name: str, before: str) -> str:
    """Return what has changed from the dense or the compressed model to the pruned one, with its error."""
    if before == "dense":
        errors, p_values = report.difference_stderr, report.difference_p_value
    else:
        errors, p_values = (report.recovery.get(f"difference_{kind}", {}) for kind in ("stderr", "p_value"))
    old, new = (report.evaluation[which].get(name) for which in (before, "pruned"))
    return change(name, old, new, errors.get(name), p_values.get(name))


def _facts(report: Report) -> list[Row]:
    """Return sizes, ratio, placement, times and the checkpoint's path."""
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    with_bos = [name for name, begins in report.bos.items() if begins]
    return [
        ("", "dense", "pruned"),
        *sizes(report),
        ("ratio removed", "", _ratio(report)),
        *_targets(report),
        *((("placement", "", _places(report)),) if report.device_map else ()),
        *((("computed in", "", _types(report)),) if report.computed_in != report.dtype else ()),
        *((("windows begin with BOS", "", ", ".join(with_bos)),) if with_bos else ()),
        ("seconds", "", seconds),
        ("checkpoint", "", report.checkpoint or "not saved"),
        *([("loads with", "", report.loads_with)] if report.loads_with else []),
        *([("tensor parallelism", "", _ranks(report))] if report.layers else []),
    ]


def _ratio(report: Report) -> str:
    """Return the realised and the requested ratio as text, and what rounding changed in it."""
    realised, requested = (report.ratio.get(which) for which in ("realised_decoder", "requested"))
    if requested is None:
        return f"{realised:.4f}"
    cost = report.ratio.get("rounding_cost")
    return f"{realised:.4f} of {requested:g} asked" + (
        "" if cost is None else f" ({round(cost, 4) + 0.0:+.4f} by whole blocks)"
    )


def _ranks(report: Report) -> str:
    """Return the numbers of ranks that the pruned model can be split over, as text."""
    takes = ", ".join(map(str, report.tensor_parallel))
    return f"over {takes} ranks" if takes else "none: a layer's heads or neurons are odd in number"


def _targets(report: Report) -> list[Row]:
    """Return a row for each target: what the dense model has, and what is realised of what was asked."""
    return [(f"target.{name}", _in_digits(one["dense"]), _realised(one)) for name, one in report.target.items()]


def _realised(target: Mapping[str, float]) -> str:
    """Return the realised and the asked value as text, and the measured one where it is a time."""
    measured = f", {_in_digits(target['measured'])} measured" if "measured" in target else ""
    return f"{_in_digits(target['realised'])} of {_in_digits(target['asked'])} asked{measured}"


def _in_digits(value: float) -> str:
    return f"{value:,.0f}" if value % 1 == 0 else f"{value:,.1f}"


def measured_number(numbers: Mapping[str, float], name: str) -> str:
    """Return a number with its standard error, if it has one; empty if it was not measured."""
    places, value, error = decimals(name), numbers.get(name), numbers.get(f"{name}_stderr")
    if value is None:
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.{places}f}"
    return shown if error is None else f"{shown} ± {error:.{places}f}"


def _types(report: Report) -> str:
    """Return the type of matrix products that are not of the weights' type, as text."""
    computed, stored = (name.removeprefix("torch.") for name in (report.computed_in, report.dtype))
    return f"{computed}, because {stored} is slow on this processor; the weights and the checkpoint are {stored}"


def _places(report: Report) -> str:
    """Return how many modules each device has, as text."""
    counts = Counter(report.device_map.values())
    return "modules on " + ", ".join(f"{device}: {count}" for device, count in counts.items())


def sizes(report: Report) -> list[Row]:
    """Return the rows of the parameters, of the whole model and of the decoder's Linears."""
    rows: list[Row] = []
    for which, label in (("total", "parameters"), ("decoder", "decoder's Linear parameters")):
        before, after = (report.parameters[f"{which}_{when}"] for when in ("before", "after"))
        rows.append((label, f"{before:,}", f"{after:,} ({after / before:.1%})"))
    return rows


def show(report: Report) -> None:
    """Print the name of the run and its tables on the console."""
    console = Console()
    console.print(escape(report.config["run_name"]), style="italic")
    for headings, *rows in tables(report):
        console.print(console_table(headings, [map(escape, row) for row in rows]))


def console_table(headings: Iterable[str], rows: Iterable[Iterable[str]], numeric: bool = False) -> Table:
    """Return a table for the console, of texts with rich's markup. numeric: all columns but the first are numbers."""
    table = Table(pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", justify="right" if i and numeric else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(report: Report) -> str:
    """Return the text of report.md: tables, notices, the picture, and the widths of each layer."""
    lines = [f"# {report.config['run_name']}"]
    for table in tables(report):
        lines += ["", markdown_table(table)]
    for notice in notices(report):
        lines += ["", notice]
    lines += _continuations(report)
    lines += ["", "![kept units by layer](layers.png)", ""]
    keys = [key for key in UNITS if any(key in layer for layer in report.layers)]
    columns = [[UNITS[key], *(str(layer.get(key, "")) for layer in report.layers)] for key in keys]
    if report.layer_errors:
        errors = ("not finite" if error is None else f"{error:.3f}" for error in report.layer_errors)
        columns.append(["error of hidden states", *errors])
    lines.append(markdown_table([*zip(["layer", *map(str, range(len(report.layers)))], *columns, strict=True)]))
    return "\n".join(lines) + "\n"


def _continuations(report: Report) -> list[str]:
    """Return what both models wrote after each prompt, side by side."""
    if not report.continuations:
        return []
    dense, pruned = report.continuations["dense"], report.continuations["pruned"]
    rows: list[Row] = [tuple(map(_literal, (prompt, dense.get(prompt, ""), text))) for prompt, text in pruned.items()]
    return ["", "Greedy continuations:", "", markdown_table([("prompt", "dense", "pruned"), *rows])]


def _literal(text: str) -> str:
    """Return a text on one line that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|#~<>&])", r"\\\1", " ".join(text.split()))


def markdown_table(table: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; its first row has the headings."""
    headings, *rows = map(tuple, table)
    lines = [f"| {' | '.join(row)} |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])
