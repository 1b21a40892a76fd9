"""The report for people: its tables on the console and in report.md."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flap.results.markdown_text import escaped
from flap.results.notices import notices, remarks
from flap.results.number_texts import change, domain_of, in_order, with_error
from flap.results.record import Record
from flap.results.tables import Columns, Table

UNITS = {
    "query_heads": "query heads",
    "kv_heads": "KV heads",
    "neurons": "neurons",
    "experts": "experts",
}
MODELS = ("dense", "compressed", "pruned")  # in the order of the columns

Row = tuple[str, str, str]  # name, of the dense model, of the pruned model


def tables(report: Record) -> list[Table]:
    """Return the tables of a report: the measured numbers, then sizes, ratio, placement and times.

    Tables and rows without a value are left out.
    """
    facts = [row for row in _facts(report) if any(row[1:])]
    both = [measured(report), Table.of(("", "dense", "pruned"), facts)]
    return [table for table in both if table.rows]


def measured(report: Record) -> Table:
    """Return the numbers of the models, what pruning changed, and the domain of each text.

    A model that was trained after compression also has its numbers from before the training, and
    what the training changed.
    """
    models = {name: report.evaluation[name] for name in MODELS if name in report.evaluation}
    columns: Columns = {name: partial(with_error, numbers) for name, numbers in models.items()}
    for before in models:
        if before != "pruned":
            columns[f"pruned - {before}"] = partial(_change, report, before)
    if report.domains:
        columns["domain"] = partial(domain_of, domains=report.domains)

    names = [name for name in models["dense"] | models["pruned"] if not name.endswith("_stderr")]
    return Table.over(in_order(names, report.domains), columns)


def _change(report: Record, before: str, name: str) -> str:
    """Return how a number of the pruned model differs from that of an earlier model."""
    if before == "dense":
        errors = report.difference_stderr
        p_values = report.difference_p_value
    else:
        errors = report.recovery.get("difference_stderr", {})
        p_values = report.recovery.get("difference_p_value", {})
    models = report.evaluation
    return change(name, models[before], models["pruned"], errors.get(name), p_values.get(name))


def _facts(report: Record) -> list[Row]:
    rows = [*sizes(report), ("ratio removed", "", _ratio(report))]
    for name, target in report.target.items():
        rows.append((f"target.{name}", _in_digits(target["dense"]), _realised(target)))

    with_bos = [name for name, begins in report.bos.items() if begins]
    times = [f"{stage} {value:.1f}" for stage, value in report.seconds.items()]
    return [
        *rows,
        ("placement", "", _placement(report)),
        ("windows begin with BOS", "", ", ".join(with_bos)),
        ("seconds", "", ", ".join(times)),
        ("loads with", "", report.loads_with),
    ]


def sizes(report: Record) -> list[Row]:
    """Return the rows of all parameters, of the decoder's Linears, and of a trimmed vocabulary."""
    rows = []
    for which, label in (("total", "parameters"), ("decoder", "decoder's Linear parameters")):
        before = report.parameters[f"{which}_before"]
        after = report.parameters[f"{which}_after"]
        rows.append((label, f"{before:,}", f"{after:,} ({after / before:.1%})"))

    tokens = report.vocabulary
    if tokens:
        share = f"({tokens['covered']:.2%} of the counted tokens)"
        rows.append(("vocabulary", f"{tokens['before']:,}", f"{tokens['after']:,} {share}"))
    return rows


def _ratio(report: Record) -> str:
    """Return the realised ratio, the requested one, and what rounding changed."""
    text = f"{report.ratio.get('realised_decoder'):.4f}"
    requested = report.ratio.get("requested")
    if requested is None:
        return text
    text += f" of {requested:g} asked"

    cost = report.ratio.get("rounding_cost")
    if cost is not None:
        rounded = round(cost, 4) + 0.0  # no negative zero
        text += f" ({rounded:+.4f} by whole blocks)"
    return text


def _realised(target: Mapping[str, float]) -> str:
    return f"{_in_digits(target['realised'])} of {_in_digits(target['asked'])} asked"


def _in_digits(value: float) -> str:
    return f"{value:,.0f}" if value % 1 == 0 else f"{value:,.1f}"


def _placement(report: Record) -> str:
    """Return how many modules are on each device; empty if the whole model is on one."""
    if not report.device_map:
        return ""
    counts = Counter(report.device_map.values())
    return "modules on " + ", ".join(f"{device}: {count}" for device, count in counts.items())


def show(report: Record, folder: Path) -> None:
    """Print the name of a run, its tables and remarks, and the paths of checkpoint and report."""
    console = Console()
    console.print(escape(report.config["run_name"]), style="italic")
    for table in tables(report):
        console.print(table.console())
    for remark in remarks(report):
        print(remark)
    print(report.checkpoint or "checkpoint: not saved")
    print(folder / "report.md")


def markdown(report: Record) -> str:
    """Return the text of report.md: tables, notices, the picture, and the widths of each layer."""
    parts = [f"# {escaped(report.config['run_name'])}"]
    parts += [table.markdown() for table in tables(report)]
    parts.append(f"Checkpoint: {escaped(report.checkpoint or 'not saved')}")
    parts += [escaped(notice) for notice in notices(report)]
    parts += ["![kept units by layer](layers.png)", _layers(report).markdown()]
    return "\n\n".join(parts) + "\n"


def _layers(report: Record) -> Table:
    """Return the table of the widths of each layer."""
    keys = [key for key in UNITS if any(key in layer for layer in report.layers)]
    rows = []
    for i, layer in enumerate(report.layers):
        rows.append([str(i), *(str(layer.get(key, "")) for key in keys)])
    return Table.of(["layer", *(UNITS[key] for key in keys)], rows)
