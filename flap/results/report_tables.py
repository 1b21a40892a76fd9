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


def tables(report: Record) -> list[Table]:
    """Return the tables: the measured numbers, if there are any, and sizes, ratio, placement, times."""
    facts = Table.of(("", "dense", "pruned"), (row for row in _facts(report) if any(row[1:])))
    return [table for table in (measured(report), facts) if table.rows]


def measured(report: Record) -> Table:
    """Return the numbers of the models, what pruning changed, and the domain of each text, if it is known.

    A model that was trained after compression has its numbers of before, too, and what training changed.
    """
    numbers = report.evaluation
    models = {
        which: numbers[which] for which in ("dense", "compressed", "pruned") if which in numbers
    }
    columns: Columns = {
        which: partial(with_error, one_model) for which, one_model in models.items()
    }
    columns |= {
        f"pruned - {before}": partial(_change, report, before)
        for before in models
        if before != "pruned"
    }
    if report.domains:
        columns["domain"] = partial(domain_of, domains=report.domains)
    names = [name for name in models["dense"] | models["pruned"] if not name.endswith("_stderr")]
    return Table.over(in_order(names, report.domains), columns)


def _change(report: Record, before: str, name: str) -> str:
    if before == "dense":
        errors = report.difference_stderr
        p_values = report.difference_p_value
    else:
        errors, p_values = (
            report.recovery.get(f"difference_{kind}", {}) for kind in ("stderr", "p_value")
        )
    models = report.evaluation
    return change(name, models[before], models["pruned"], errors.get(name), p_values.get(name))


def _facts(report: Record) -> list[tuple[str, str, str]]:
    """Return rows of facts; those without a value are not shown."""
    return [
        *sizes(report),
        ("ratio removed", "", _ratio(report)),
        *(
            (f"target.{name}", _in_digits(one["dense"]), _realised(one))
            for name, one in report.target.items()
        ),
        ("placement", "", _places(report)),
        (
            "windows begin with BOS",
            "",
            ", ".join(name for name, begins in report.bos.items() if begins),
        ),
        (
            "seconds",
            "",
            ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items()),
        ),
        ("loads with", "", report.loads_with),
    ]


def sizes(report: Record) -> list[tuple[str, str, str]]:
    """Return the rows of all parameters, of the decoder's Linears, and of a trimmed vocabulary."""
    rows = []
    for which, label in (("total", "parameters"), ("decoder", "decoder's Linear parameters")):
        before, after = (report.parameters[f"{which}_{when}"] for when in ("before", "after"))
        rows.append((label, f"{before:,}", f"{after:,} ({after / before:.1%})"))
    if tokens := report.vocabulary:
        share = f"({tokens['covered']:.2%} of the counted tokens)"
        rows.append(("vocabulary", f"{tokens['before']:,}", f"{tokens['after']:,} {share}"))
    return rows


def _ratio(report: Record) -> str:
    """Return the realised and the requested ratio, and what rounding changed in it."""
    realised, requested = (report.ratio.get(which) for which in ("realised_decoder", "requested"))
    if requested is None:
        return f"{realised:.4f}"
    cost = report.ratio.get("rounding_cost")
    by_blocks = "" if cost is None else f" ({round(cost, 4) + 0.0:+.4f} by whole blocks)"
    return f"{realised:.4f} of {requested:g} asked{by_blocks}"


def _realised(target: Mapping[str, float]) -> str:
    return f"{_in_digits(target['realised'])} of {_in_digits(target['asked'])} asked"


def _in_digits(value: float) -> str:
    return f"{value:,.0f}" if value % 1 == 0 else f"{value:,.1f}"


def _places(report: Record) -> str:
    counts = Counter(report.device_map.values())
    return "modules on " * bool(counts) + ", ".join(
        f"{device}: {count}" for device, count in counts.items()
    )


def show(report: Record, folder: Path) -> None:
    """Print the name of a run, its tables and remarks on the console; last the paths of checkpoint and report.md."""
    console = Console()
    console.print(escape(report.config["run_name"]), style="italic")
    for table in tables(report):
        console.print(table.console())
    print(
        *remarks(report),
        report.checkpoint or "checkpoint: not saved",
        folder / "report.md",
        sep="\n",
    )


def markdown(report: Record) -> str:
    """Return the text of report.md: tables, notices, the picture, and the widths of each layer."""
    parts = [f"# {escaped(report.config['run_name'])}"]
    parts += [table.markdown() for table in tables(report)]
    parts.append(f"Checkpoint: {escaped(report.checkpoint or 'not saved')}")
    parts += [escaped(notice) for notice in notices(report)]
    parts += ["![kept units by layer](layers.png)", _layers(report).markdown()]
    return "\n\n".join(parts) + "\n"


def _layers(report: Record) -> Table:
    keys = [key for key in UNITS if any(key in layer for layer in report.layers)]
    columns = {"layer": [str(i) for i in range(len(report.layers))]}
    columns |= {UNITS[key]: [str(layer.get(key, "")) for layer in report.layers] for key in keys}
    return Table.of(columns, zip(*columns.values(), strict=True))
