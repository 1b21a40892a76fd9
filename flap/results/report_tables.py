"""The report as text: tables on the console and in report.md.

A number is a measured result, such as a perplexity or an accuracy.
"""

from collections import Counter
from itertools import chain
from pathlib import Path

from rich.markup import escape

from flap.evaluation.base import Numbers
from flap.results.markdown_text import escaped
from flap.results.notices import notices, remarks
from flap.results.number_texts import change, domain_of, in_order, short, with_error
from flap.results.record import Record
from flap.results.tables import Table, wide_console

UNITS = {
    "query_heads": "query heads",
    "kv_heads": "KV heads",
    "neurons": "neurons",
    "experts": "experts",
}
MODELS = ("dense", "compressed", "pruned")  # models in the order of the table's columns
VOCABULARY = ("{before:,}", "{after:,} ({covered:.2%} of the counted tokens)")

# a row of a table: the name of a fact, and its values for the dense and the pruned model, as text
Row = tuple[str, str, str]


def tables(report: Record) -> list[Table]:
    """Return the two tables of a report: the measured numbers, and other facts about the run.

    The other facts are, for example, the number of parameters, the share of parameters that was
    removed, and the time of each stage. Rows without a value, and tables without rows, are left
    out.
    """
    facts = [row for row in _facts(report) if any(row[1:])]
    both = [measured(report), Table(("", "dense", "pruned"), facts)]
    return [table for table in both if table.rows]


def measured(report: Record) -> Table:
    """Return the table of the numbers that were measured on the dense and on the pruned model.

    The table also has the differences between the two models, and the domain of each number. The
    domain is "calibration" if the run has also used the data set or documents of the evaluation
    task for another purpose, such as calibration. Otherwise, the domain is "other".

    If the model was trained after compression, the table also has the numbers that were measured
    before training, and the changes that training made. If the vocabulary was trimmed, perplexities
    are left out, because only the dense model has them.
    """
    models = {name: report.evaluation[name] for name in MODELS if name in report.evaluation}
    *earlier, _ = models
    heads = ["", *models, *(f"pruned - {before}" for before in earlier)]
    if report.domains:
        heads.append("domain")

    rows = []
    for name in in_order(models["dense"] | models["pruned"], report.domains):
        if name not in models["pruned"]:
            continue
        row = [name, *(with_error(numbers, name) for numbers in models.values())]
        row += [_change(report, before, name) for before in earlier]
        if report.domains:
            row.append(domain_of(name, report.domains))
        rows.append(row)
    return Table(heads, rows)


def _change(report: Record, before: str, name: str) -> str:
    """Format the difference of a number between the pruned model and another model.

    before: the name of the other model: "dense", or "compressed" for the pruned model before it was
        trained.
    """
    noise = vars(report) if before == "dense" else report.recovery
    return change(
        name,
        report.evaluation[before],
        report.evaluation["pruned"],
        noise.get("difference_stderr", {}).get(name),
        noise.get("difference_p_value", {}).get(name),
    )


def _facts(report: Record) -> list[Row]:
    rows = [*sizes(report), ("ratio removed", "", _ratio(report.ratio))]
    for name, target in report.target.items():
        realised = f"{short(target['realised'])} of {short(target['asked'])} asked"
        rows.append((f"target.{name}", short(target["dense"]), realised))

    devices = Counter(report.device_map.values()).items()
    facts = {
        "placement": [f"{count} modules on {device}" for device, count in devices],
        "windows begin with BOS": [name for name, begins in report.bos.items() if begins],
        "compute seconds": [f"{stage} {value:.1f}" for stage, value in report.seconds.items()],
        "loads with": [report.loads_with],
    }
    return rows + [(name, "", ", ".join(texts)) for name, texts in facts.items()]


def sizes(report: Record) -> list[Row]:
    """Return rows with the numbers of parameters, decoder parameters and vocabulary tokens."""
    rows = []
    for which, label in (("total", "parameters"), ("decoder", "decoder's Linear parameters")):
        dense = report.parameters[f"{which}_before"]
        pruned = report.parameters[f"{which}_after"]
        rows.append((label, f"{dense:,}", f"{pruned:,} ({pruned / dense:.1%})"))
    if report.vocabulary:
        before, after = (text.format(**report.vocabulary) for text in VOCABULARY)
        rows.append(("vocabulary", before, after))
    return rows


def _ratio(ratio: Numbers) -> str:
    """Describe the realised and the requested share of parameters that pruning removes.

    If the number of heads or neurons was rounded, also say how much this changed the share.
    """
    text = "{realised_decoder:.4f}"
    if "requested" in ratio:
        text += " of {requested:g} asked"
    if "rounding_cost" in ratio:
        text += " ({rounding_cost:+z.4f} by whole blocks)"
    return text.format(**ratio)


def show(report: Record, folder: Path) -> None:
    """Print a run's name and tables, the notices for the console, and the paths of its files.

    The files are the checkpoint, if it was saved, and report.md.
    """
    console = wide_console()
    console.print(escape(report.config["run_name"]), style="italic")
    for table in tables(report):
        console.print(table.console())
    print(
        *remarks(report),
        report.checkpoint or "checkpoint: not saved",
        folder / "report.md",
        sep="\n",
    )


def headline(report: Record) -> str:
    """Return a line with the first number of the table of measured numbers.

    If nothing was measured, the line has the share of parameters that was removed.
    """
    models = report.evaluation
    names = [name for name in models["pruned"] if not name.endswith("_stderr")]
    if not names:
        return f"ratio removed {_ratio(report.ratio)}"
    name = in_order(names, report.domains)[0]
    text = f"{name} {with_error(models['pruned'], name)}"
    if name in models["dense"]:
        text += f" (dense {with_error(models['dense'], name)})"
    return text


def markdown(report: Record) -> str:
    """Return the text of report.md: tables, notices, and a plot of the layers.

    The plot and the last table show how many heads, neurons and experts each layer keeps. The plot
    is a link to the file layers.png.
    """
    paragraphs = [
        f"# {escaped(report.config['run_name'])}",
        *(table.markdown() for table in tables(report)),
        f"Checkpoint: {escaped(report.checkpoint or 'not saved')}",
        *map(escaped, notices(report)),
        "![kept units by layer](layers.png)",
        _widths(report).markdown(),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _widths(report: Record) -> Table:
    """Return a table with the numbers of heads, neurons and experts that each layer keeps."""
    units = [unit for unit in UNITS if unit in {*chain(*report.layers)}]
    rows = []
    for i, layer in enumerate(report.layers):
        widths = [layer.get(unit, "") for unit in units]
        rows.append(list(map(str, [i, *widths])))
    return Table(["layer", *map(UNITS.__getitem__, units)], rows)
