"""The files of a study: study.csv for programs, study.md for people, plots/, the page index.html."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from flap.config import require
from flap.results.pages import study_page, title
from flap.results.plots import Plot, draw
from flap.results.study import Study
from flap.results.study_table import tabulate
from flap.results.sweep_folders import distinct, read_study
from flap.results.tables import Entry, Table
from flap.storage.atomic_files import atomic_file, write_text

LONGEST_NAME = 255  # bytes of a folder's name, in most file systems
LEGEND = (
    "Bold: best at its ratio, clear of the noise of all others. ≈: the best, or within the noise of the best (p ≥ "
    "0.05, paired by document). Where the runs have not kept the same documents, or do not say which values are "
    "better, nothing is marked."
)


def write_study(*sweeps: Path, into: Path | None = None) -> Path:
    """Write the table, plots and page of one or more sweeps, and return the page's path.

    All files are made in memory first, so that an error leaves the files of an earlier call unchanged.
    into: their folder; None: that of the sweep, or for several A+B beside the first of the sweeps A and B.

    Raises:
        ValueError: a folder cannot be read (see `read_study`), or `into` is needed, as A+B would be too long.
    """
    folder = into or _beside(distinct(sweeps))
    study = read_study(*sweeps, into=folder)
    plots = draw(study)
    pictures = {f"{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")}
    texts = {
        "study.csv": study.records.to_csv(index=False, lineterminator="\n"),
        "study.md": markdown(study, plots),
        "index.html": study_page(study, plots),
    }
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        with atomic_file(folder / "plots" / name) as scratch:
            scratch.write_bytes(picture)
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "index.html"


def _beside(sweeps: list[Path]) -> Path:
    name = "+".join(sweep.resolve().name for sweep in sweeps)
    if len(sweeps) == 1:
        return sweeps[0]
    allowed = f"a folder for the page: the names of {len(sweeps)} sweeps are too long for one"
    require(len(name.encode()) <= LONGEST_NAME, "--into", None, allowed)
    return sweeps[0].resolve().parent / name


def markdown(study: Study, plots: Sequence[Plot]) -> str:
    """Return study.md: the table, the runs without a result, and the plots."""
    table, dense = tabulate(study), tabulate(study, "dense")
    rows = [(*row, Entry("dense")) for row in dense.rows]
    rows += [
        (*row, Entry(run.folder)) for run, row in zip(study.runs, table.rows, strict=True) if run.state == "finished"
    ]
    lines = [f"# {_inline(title(study))}", "", Table((*table.heads, "cell"), rows).markdown(_inline)]
    missing = [run for run in study.runs if run.state != "finished"]
    lines += ["", LEGEND, *_domains(study), *([""] if missing else [])]
    lines += [f"- {run.state}: {_inline(run.folder)}: {_inline(run.error)}" for run in missing]
    lines += [f"\n![{_inline(plot.caption)}](plots/{plot.name}.png)\n\n{_inline(plot.caption)}" for plot in plots]
    return "\n".join(lines) + "\n"


def _domains(study: Study) -> list[str]:
    openings = {"calibration": "On text like the calibration's", "other": "On other text"}
    names = {domain: [name for name in study.measured if study.domain(name) == domain] for domain in openings}
    return [f"{openings[domain]}: {_inline(', '.join(measured))}." for domain, measured in names.items() if measured]


def _inline(text: str) -> str:
    """Return text on one line, with `|` and HTML escaped, so that it is safe in a Markdown table."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
