"""The page index.html of a study: one self-contained file that a browser opens from disk."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flap.results.comparability import notices
from flap.results.config_keys import varying
from flap.results.plots import INK, MUTED, RULE, Plot
from flap.results.study import CHOICES, Cell, Study
from flap.results.study_table import Row, tabulate
from flap.results.study_texts import records

FILTERS = ("sweep", "model", "method", "metric", "structure", "ratio", "seed", "state")
THEME = {
    "#ffffff": "none",
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
}  # so that plots follow the dark theme of the page


def title(study: Study) -> str:
    """Return the title of a study: the models, and the choices that differ between the cells."""
    models = ", ".join(study.values("model")) or study.folder.name
    differs = [name for name in (*CHOICES, "options") if name != "model" and len(study.values(name)) > 1]
    return f"Pruning {models}" + (f": {' × '.join(differs)}" if differs else "")


def page(study: Study, plots: list[Plot], version: str = "") -> str:
    """Return the whole HTML of the page; all text from the data is escaped.

    version: of a served page, which asks for a newer one; empty: a page from disk.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    keys = varying(study.cells)
    environment.filters |= {"path": quote, "keys": _keys, "fields": partial(_fields, [*FILTERS, *keys])}
    return environment.get_template("study.html.j2").render(
        title=title(study),
        version=version,
        study=study,
        table=tabulate(study),
        counts=Counter(cell.state for cell in study.cells),
        facts=dict(_facts(study)),
        warnings=Counter(warning for cell in study.finished for warning in cell.report["warnings"]),
        notices=list(notices(study)),
        filters={name: study.values(name) for name in FILTERS if len(study.values(name)) > 1},
        keys=keys,
        records=dict(zip(("columns", "rows"), records(study), strict=True)),
        plots=[(plot, inline(plot.svg)) for plot in plots],
    )


def _fields(names: list[str], cell: Cell) -> str:
    """Return what a cell is filtered by as JSON: the values of its choices and of the config keys that vary."""
    values = {name: getattr(cell, name) if name in FILTERS else cell.config.get(name) for name in names}
    return json.dumps({name: str(value) for name, value in values.items() if value is not None})


def _keys(row: Row) -> str:
    """Return the sort keys of a row as JSON: folder, state, and each value."""
    return json.dumps([row.cell.folder, row.cell.state, *(value.key for value in row.values)])


def _facts(study: Study) -> Iterator[tuple[str, str]]:
    """Yield the facts of a study (choices, commit, versions, device, sources); where cells differ, with counts."""
    for name in ("sweep", *CHOICES, "options"):
        if values := study.values(name):
            yield name, ", ".join(f"{value}" for value in values)
    yield "commit", _tally(_commit(cell.report["git"]) for cell in study.finished)
    yield (
        "versions",
        _tally(", ".join(f"{k} {v}" for k, v in cell.report["versions"].items()) for cell in study.finished),
    )
    yield "device", _tally(cell.report["device"] for cell in study.finished)
    yield (
        "sources",
        _tally("; ".join(f"{k}: {v}" for k, v in cell.report["sources"].items()) for cell in study.finished),
    )


def _commit(git: dict[str, Any]) -> str:
    """Return the commit as text, and whether there were uncommitted changes."""
    if git["commit"] is None:
        return "unknown: not run from a checkout"
    return f"{git['commit']}{', with uncommitted changes' if git['dirty'] else ', clean'}"


def _tally(values: Iterator[str]) -> str:
    """Return the distinct values as text, each with its number of cells if there are several."""
    counts = Counter(values)
    if len(counts) < 2:
        return "".join(counts)
    return " · ".join(f"{value} ({count} cells)" for value, count in counts.items())


def inline(svg: bytes) -> Markup:
    """Return a plot as an SVG element with the page's colours."""
    element = svg.decode()[svg.decode().index("<svg") :]
    for colour, variable in THEME.items():
        element = re.sub(colour, variable, element, flags=re.IGNORECASE)
    return Markup(element)  # matplotlib escapes the texts
