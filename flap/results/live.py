"""The page of sweeps that may still run, made anew when their files change. Nothing is written."""

from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from threading import Lock

from flap.evaluation.results import RESULTS
from flap.results.plots import Plot, draw
from flap.results.study_folders import read_study
from flap.results.study_page import page, title
from flap.results.study_texts import csv_text, markdown
from flap.storage.progress_file import PROGRESS
from flap.storage.status import STATUS

RESULT_FILES = (STATUS, "report.json")
Stamps = tuple[tuple[str, int], ...]


@dataclass
class Live:
    """What is served of sweeps: the page and the files beside it, by their address, from memory or from the cells."""

    sweeps: tuple[Path, ...]
    version: str = ""
    contents: dict[str, bytes | Path] = field(default_factory=dict)
    _drawn: tuple[Stamps, list[Plot]] = ((), [])
    _lock: Lock = field(default_factory=Lock)

    def update(self) -> None:
        """Read the sweeps again if their files have changed.

        Raises:
            ValueError: a folder cannot be read (see `read_study`); what was served before stays.
        """
        with self._lock:
            version = str(hash(self._stamps(*RESULT_FILES, RESULTS, PROGRESS)))
            if version != self.version:
                self.contents = self._made(version)
                self.version = version

    def _stamps(self, *names: str) -> Stamps:
        """Return when the cells' files of these names were written."""
        found = (path for sweep in self.sweeps for name in names for path in sorted(sweep.glob(f"*/{name}")))
        return tuple((str(path), stamp) for path in found if (stamp := _stamp(path)))

    def _made(self, version: str) -> dict[str, bytes | Path]:
        study = read_study(*self.sweeps, waiting=True)
        stamps = self._stamps(*RESULT_FILES)
        if stamps != self._drawn[0]:  # drawing takes seconds, and progress changes every second
            self._drawn = stamps, draw(study)
        plots = self._drawn[1]
        made: dict[str, bytes | Path] = {
            "/": page(study, plots, version).encode(),
            "/version": version.encode(),
            "/study.csv": csv_text(study).encode(),
            "/study.md": markdown(study, title(study), {}).encode(),
        }
        made |= {f"/plots/{plot.name}.{kind}": getattr(plot, kind) for plot in plots for kind in ("png", "svg")}
        files = (f"{cell.folder}/{name}" for cell in study.cells for name in cell.files)
        return made | {normpath(f"/{file}"): study.folder / file for file in files}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed since it was listed
        return 0
