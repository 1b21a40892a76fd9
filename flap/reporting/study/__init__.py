"""What a sweep leaves for people and programs: study.csv, study.md, plots/ and index.html."""

import os
from pathlib import Path

from flap.reporting.study.cells import Cell, Study
from flap.reporting.study.page import page, title
from flap.reporting.study.plots import draw
from flap.reporting.study.read import read_study
from flap.reporting.study.texts import csv_text, markdown, records

__all__ = ["Cell", "Study", "read_study", "records", "write_study"]


def write_study(folder: Path) -> Path:
    """Read the cells of a sweep and write its table, plots and page into its folder. Returns: the page's path.

    Everything is made before anything is written, so an error leaves the files of an earlier call as they are.

    Raises:
        ValueError: as `read_study` says.
    """
    study = read_study(folder)
    plots = draw(study)
    pictures = {f"plots/{plot.name}.png": plot.caption for plot in plots}
    files = {f"plots/{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")}
    files["study.csv"] = csv_text(study).encode()
    files["study.md"] = markdown(study, title(study), pictures).encode()
    files["index.html"] = page(study, plots).encode()
    for name, content in files.items():
        _write_whole(folder / name, content)
    return folder / "index.html"


def _write_whole(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one."""
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
