"""study.json, one file a study, which is always whole: what `python -m flap.study --all` says of it.

It is written when a cell of a sweep begins or ends, and with the study's page.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flap.storage.atomic_files import write_text
from flap.storage.json_files import read_json, to_json
from flap.storage.status import STATUS, read_state

ENTRY, SCHEMA = "study.json", 1


def note_study(folder: Path, **said: Any) -> None:
    """Write what is said of a study: its cells by state, the planned ones, the best; the rest stays as it was."""
    date = datetime.now().isoformat(" ", "seconds")
    entry = read_json(folder / ENTRY) | {"schema": SCHEMA, "date": date, **said}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ENTRY, to_json(entry, indent=1) + "\n")


def note_cells(folder: Path) -> None:
    """Write how many cells of a sweep are in which state so far."""
    states: Counter[str] = Counter(read_state(path.parent) or "damaged" for path in folder.glob(f"*/{STATUS}"))
    states["unfinished"] = states.pop("running", 0)
    note_study(folder, cells=+states)


def list_studies(folders: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each study below the folders, the newest first: date, folder, states of cells, best cells.

    A file of that name that something else has written is left out.

    Raises:
        ValueError: there is none.
    """
    paths = {path for folder in folders for path in folder.rglob(ENTRY)}
    read = {path.parent: read_json(path) for path in sorted(paths)}
    entries = {folder: entry for folder, entry in read.items() if not entry or entry.get("schema") == SCHEMA}
    if not entries:
        raise ValueError(f"{', '.join(map(str, folders))}: no study below it; expected folders of sweeps")
    for folder, entry in sorted(entries.items(), key=lambda one: str(one[1].get("date")), reverse=True):
        yield "  ".join([str(entry.get("date", "damaged")), str(folder), _state(entry), *_best(entry)])


def _state(entry: Mapping[str, Any]) -> str:
    """Return the states of a study's cells in words: "3 finished, 1 failed of 24"."""
    counts = ", ".join(f"{count} {state}" for state, count in entry.get("cells", {}).items()) or "no cell yet"
    return counts + (f" of {planned}" if (planned := entry.get("planned")) else "")


def _best(entry: Mapping[str, Any]) -> Iterator[str]:
    for one in entry.get("best", []):
        yield f"best at {one['ratio']}: {one['cell']} ({one['number']} {one['value']:.4g})"
