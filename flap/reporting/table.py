"""The report for people: one table, on the console and in report.md."""

from collections import Counter
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flap.reporting.report import Report

Row = tuple[str, str, str]


def rows(report: Report) -> list[Row]:
    """(what, dense, pruned): the evaluation's numbers first, then size, ratio, time and where the checkpoint lies."""
    dense, pruned = report.evaluation["dense"], report.evaluation["pruned"]
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    return [
        *((name, _number(dense.get(name)), _number(pruned.get(name))) for name in dense | pruned),
        _sizes(report, "total", "parameters"),
        _sizes(report, "decoder", "decoder's Linear parameters"),
        ("ratio removed", "", _ratio(report)),
        *((("placement", "", _places(report)),) if report.device_map else ()),
        ("seconds", "", seconds),
        ("checkpoint", "", report.checkpoint or "not saved"),
        *([("loads with", "", report.loads_with)] if report.loads_with else []),
    ]


def _ratio(report: Report) -> str:
    met, asked = (report.ratio[which] for which in ("realised_decoder", "requested"))
    cost = report.ratio.get("round_to_cost")
    return f"{met:.4f} of {asked:g} asked" + ("" if cost is None else f" ({round(cost, 4) + 0.0:+.4f} by round_to)")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.3f}"


def _places(report: Report) -> str:
    counts = Counter(report.device_map.values())
    return "modules on " + ", ".join(f"{place}: {count}" for place, count in counts.items())


def _sizes(report: Report, which: str, label: str) -> Row:
    before, after = (report.parameters[f"{which}_{when}"] for when in ("before", "after"))
    return label, f"{before:,}", f"{after:,} ({after / before:.1%})"


def show(report: Report) -> None:
    """Print the table."""
    table = Table(title=escape(report.config["run_name"]), title_justify="left")
    for column in ("", "dense", "pruned"):
        table.add_column(column, overflow="fold")
    for row in rows(report):
        table.add_row(*map(escape, row))
    Console().print(table)


def _repairs(report: Report) -> list[str]:
    """Two sentences on linear compensation, where it was chosen: what it saves, and which blocks fell back."""
    if not report.repairs:
        return []
    left = median(one["held_out_error"] / (one["held_out_error_of_bias"] or 1) for one in report.repairs.values())
    stayed = ", ".join(block for block, one in report.repairs.items() if one["ridge"] is None) or "no block"
    return [
        f"Linear compensation leaves {left:.1%} (median over blocks) of the error that the bias leaves on held-out "
        f"calibration tokens. It was no better there in {stayed}: the bias stays."
    ]


def _corrections(report: Report) -> list[str]:
    """A sentence on what the second pass did, where there was one."""
    if not report.corrections:
        return []
    corrections = report.corrections.values()
    left = median(one["held_out_error"] / (one["held_out_error_before"] or 1) for one in corrections)
    mapped = sum(one["ridge"] is not None for one in corrections)
    stayed = sum(one["held_out_error"] == one["held_out_error_before"] for one in corrections)
    return [
        f"Correction behind pruned layers leaves {left:.1%} (median over blocks) of the error that was there on "
        f"held-out calibration tokens: of {len(corrections)} blocks, {mapped} got another map, "
        f"{len(corrections) - mapped - stayed} another bias, {stayed} stay as they were."
    ]


def markdown(report: Report) -> str:
    """report.md: the table, warnings, the picture, and what each layer kept."""
    lines = [f"# {report.config['run_name']}", "", "| | dense | pruned |", "|---|---|---|"]
    lines += [f"| {what} | {dense} | {pruned} |" for what, dense, pruned in rows(report)]
    lines += ["", *(f"Warning: {warning}" for warning in report.warnings), *_repairs(report), *_corrections(report)]
    lines += ["", "![kept units by layer](layers.png)", ""]
    lines += ["| layer | query heads | KV heads | neurons |", "|---|---|---|---|"]
    for i, layer in enumerate(report.layers):
        lines.append(f"| {i} | {layer['query_heads']} | {layer['kv_heads']} | {layer['neurons']} |")
    return "\n".join(lines) + "\n"
