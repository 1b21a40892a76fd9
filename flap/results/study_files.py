"""The files of a study: study.csv for programs, plots/, the page index.html."""

from pathlib import Path

from flap.config import require
from flap.results.pages import study_page
from flap.results.plots import draw
from flap.results.sweep_folders import distinct, read_study
from flap.storage.atomic_files import atomic_file, write_text

LONGEST_NAME = 255  # bytes of a folder's name, in most file systems


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
        "index.html": study_page(study, plots),
    }
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
