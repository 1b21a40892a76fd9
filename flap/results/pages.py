"""The HTML page of a study, which shows the runs of one or more sweeps.

The page is a self-contained file that a browser opens from disk.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from markupsafe import Markup

from flap.results.comparison import mismatches
from flap.results.configs import varying
from flap.results.notices import left_out
from flap.results.plots import Plot
from flap.results.report import Report
from flap.results.run_folder import RunRecord
from flap.results.series import INK, MUTED, RULE
from flap.results.study import CHOSEN, Study
from flap.results.study_table import tabulate
from flap.results.templates import template

FILTERS = (*CHOSEN, "state")
# A dict from colours of the plots to the CSS values that replace them on the page, so that the
# plots follow the light or dark theme of a browser.
THEME = {"#ffffff": "none", INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}


def study_page(study: Study, plots: Sequence[Plot]) -> str:
    """Return the page of a study. Texts that come from the runs are escaped for HTML."""
    keys = varying(run.config for run in study.runs)
    table = tabulate(study)
    fields = [_fields(run, keys) for run in study.runs]
    page = template("study.html.j2", path=quote, json=json.dumps, inline=inline)
    return page.render(
        study=study,
        table=table,
        rows=zip(study.runs, table.rows, fields, strict=True),
        counts=Counter(run.state for run in study.runs),
        facts=_facts(study),
        warnings=Counter(warning for run in study.finished for warning in run.report.warnings),
        notices=mismatches(study.finished),
        filters=FILTERS,
        keys=keys,
        records=study.records.to_dict("split"),
        plots=plots,
    )


def _fields(run: RunRecord, keys: Iterable[str]) -> dict[str, str]:
    """Return the values of a run by which a reader of the page can filter the table of runs.

    These are the run's values in the columns `FILTERS` of the table, such as the model and the
    metric, and the run's values of the config keys `keys`, which differ between the runs.
    """
    values = {name: getattr(run, name) for name in FILTERS}
    values |= {key: run.config.get(key) for key in keys}
    return {name: str(value) for name, value in values.items() if value is not None}


def _facts(study: Study) -> dict[str, Counter[str]]:
    """Return facts about the finished runs, such as the devices on which the models ran.

    The result is a dict from the name of a fact, such as "device", to a counter. The counter says
    for each value of the fact how many runs have this value.
    """
    reports = [run.report for run in study.finished]
    versions = [map(" ".join, report.versions.items()) for report in reports]
    sources = [map(": ".join, report.sources.items()) for report in reports]
    return {
        "commit": Counter(map(_commit, reports)),
        "versions": Counter(map(", ".join, versions)),
        "device": Counter(report.device for report in reports),
        "documents left out": Counter(map(left_out, reports)),
        "sources": Counter(map("; ".join, sources)),
    }


def _commit(report: Report) -> str:
    commit = report.git.get("commit")
    if commit is None:
        state = "unknown: not run from a checkout"
    elif report.git.get("dirty"):
        state = f"{commit}, with uncommitted changes"
    else:
        state = f"{commit}, clean"
    code = report.inputs.get("code")  # a digest of the user's own code
    return f"{state}; own code: {code[:12]}" if code else state


def inline(svg: bytes) -> Markup:
    """Return a plot as an SVG element, with its colours replaced by the CSS values in THEME."""
    _, tag, element = svg.decode().partition("<svg")
    for colour, variable in THEME.items():
        element = element.replace(colour, variable)
    return Markup(tag + element)  # matplotlib has escaped the texts in the SVG
