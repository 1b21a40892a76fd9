"""The page of a study: a self-contained file that a browser opens from disk."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flap.results.comparison import mismatches
from flap.results.configs import CHOICES, varying
from flap.results.plots import Plot
from flap.results.run_folder import RunRecord
from flap.results.series import INK, MUTED, RULE
from flap.results.study import Study
from flap.results.study_table import choices, tabulate

FILTERS = ("sweep", "model", "method", "metric", "structure", "ratio", "seed", "state")
# so that plots follow the dark theme of the page
THEME = {"#ffffff": "none", INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}


def title(study: Study) -> str:
    """Return the title of a study: the models, and the choices that differ between the runs."""
    models = ", ".join(study.values("model")) or study.folder.name
    differs = [
        name for name in (*CHOICES, "options") if name != "model" and len(study.values(name)) > 1
    ]
    return f"Pruning {models}" + (f": {' × '.join(differs)}" if differs else "")


def study_page(study: Study, plots: Sequence[Plot]) -> str:
    """Return the page of a study; all text from the data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"path": quote, "json": json.dumps}
    keys = varying(run.config for run in study.runs)
    table = tabulate(study)
    dense = tabulate(study, "dense")
    return environment.get_template("study.html.j2").render(
        title=title(study),
        study=study,
        choices=choices(study),
        heads=table.heads,
        rows=list(zip(study.runs, table.rows, strict=True)),
        dense=list(zip(study.of(study.dense), dense.rows, strict=True)),
        counts=Counter(run.state for run in study.runs),
        facts=dict(_facts(study)),
        warnings=Counter(warning for run in study.finished for warning in run.report["warnings"]),
        notices=list(mismatches(study.finished)),
        filters={name: study.values(name) for name in FILTERS if len(study.values(name)) > 1},
        keys=keys,
        fields=partial(_fields, [*FILTERS, *keys]),
        records={"columns": list(study.records), "rows": study.records.to_numpy().tolist()},
        plots=[(plot, inline(plot.svg)) for plot in plots],
    )


def _fields(names: list[str], run: RunRecord) -> dict[str, str]:
    """Return what a run is filtered by: the values of its choices and of the config keys that vary."""
    values = {
        name: getattr(run, name) if name in FILTERS else run.config.get(name) for name in names
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _facts(study: Study) -> Iterator[tuple[str, str]]:
    """Yield the facts of a study (choices, commit, versions, device, sources); where runs differ, with counts."""
    for name in ("sweep", *CHOICES, "options"):
        if values := study.values(name):
            yield name, ", ".join(map(str, values))
    reports = [run.report for run in study.finished]
    yield "commit", _tally(map(_commit, reports))
    yield (
        "versions",
        _tally(", ".join(f"{k} {v}" for k, v in report["versions"].items()) for report in reports),
    )
    yield "device", _tally(report["device"] for report in reports)
    if any(report.get("left_out") for report in reports):
        yield "documents left out", _tally(map(_left_out, reports))
    yield (
        "sources",
        _tally("; ".join(f"{k}: {v}" for k, v in report["sources"].items()) for report in reports),
    )


def _left_out(report: dict[str, Any]) -> str:
    """Return how many documents of each task a run leaves out, because it has read them in its texts."""
    numbers = report.get("left_out", {})
    return ", ".join(f"{number:,} of {task}" for task, number in numbers.items()) or "none"


def _commit(report: dict[str, Any]) -> str:
    git, own = (
        report["git"],
        report.get("inputs", {}).get("code", ""),
    )  # code: of files outside this package
    code = f"; code of one's own: {own[:12]}" * bool(own)
    if git["commit"] is None:
        return f"unknown: not run from a checkout{code}"
    return f"{git['commit']}{', with uncommitted changes' if git['dirty'] else ', clean'}{code}"


def _tally(values: Iterator[str]) -> str:
    """Return the distinct values as text, each with its number of runs if there are several."""
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
