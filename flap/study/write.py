"""Write the files of a study: study.csv, study.md, plots/ and index.html."""

from pathlib import Path

from flap.storage.files import atomic_file
from flap.study.page import page, title
from flap.study.plots import draw
from flap.study.read import read_study
from flap.study.texts import csv_text, markdown


def write_study(folder: Path) -> Path:
    """Write the table, plots and page of a sweep into its folder, and return the page's path.

    All files are made in memory first, so that an error leaves the files of an earlier call unchanged.

    Raises:
        ValueError: the folder cannot be read (see `read_study`).
    """
    study = read_study(folder)
    plots = draw(study)
    pictures = {f"plots/{plot.name}.png": plot.caption for plot in plots}
    files = {f"plots/{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")}
    files["study.csv"] = csv_text(study).encode()
    files["study.md"] = markdown(study, title(study), pictures).encode()
    files["index.html"] = page(study, plots).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with atomic_file(folder / name) as scratch:
            scratch.write_bytes(content)
    return folder / "index.html"
