"""Write the files of a study: study.csv, study.md, plots/ and index.html."""

from pathlib import Path

from flap.results.plots import draw
from flap.results.study_folders import distinct, read_study
from flap.results.study_page import page, title
from flap.results.study_texts import csv_text, markdown
from flap.storage.files import atomic_file


def write_study(*sweeps: Path, into: Path | None = None) -> Path:
    """Write the table, plots and page of one or more sweeps, and return the page's path.

    All files are made in memory first, so that an error leaves the files of an earlier call unchanged.
    into: their folder; None: that of the sweep, or for several A+B beside the first of the sweeps A and B.

    Raises:
        ValueError: a folder cannot be read (see `read_study`).
    """
    folder = into or _beside(distinct(sweeps))
    study = read_study(*sweeps, into=folder)
    plots = draw(study)
    pictures = {f"plots/{plot.name}.png": plot.caption for plot in plots}
    files = {f"plots/{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")}
    files["study.csv"] = csv_text(study).encode()
    files["study.md"] = markdown(study, title(study), pictures).encode()
    files["index.html"] = page(study, plots).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / name) as scratch:
            scratch.write_bytes(content)
    return folder / "index.html"


def _beside(sweeps: list[Path]) -> Path:
    names = [sweep.resolve().name for sweep in sweeps]
    return sweeps[0] if len(sweeps) == 1 else sweeps[0].resolve().parent / "+".join(names)
