"""The command `flap cache`: list the cache entries (size, age, key) or delete them."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import hexdigits
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flap.storage.cache import LABEL
from flap.storage.files import bytes_below, cache_root, remove_leftovers, remove_unused

KINDS = ("statistics", "scores", "divergences", "self", "layer_times", "dense", "models", "streams", "offload")


@dataclass(frozen=True)
class Entry:
    """One folder of the cache, with its key."""

    path: Path
    key: str  # as readable text

    @property
    def kind(self) -> str:
        """Return the kind of content, such as "statistics"."""
        return self.path.parent.name

    @property
    def num_bytes(self) -> int:
        """Return the size of all its files, in bytes."""
        return bytes_below(self.path)

    @property
    def age_seconds(self) -> float:
        """Return the time since it was written, in seconds."""
        return time.time() - self.path.stat().st_mtime


def entries(root: Path) -> Iterator[Entry]:
    """Yield every entry of the cache, sorted by kind and then from new to old."""
    paths = (path for kind in KINDS for path in root.glob(f"{kind}/*"))
    folders = [path for path in paths if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(folders, key=lambda path: (path.parent.name, -path.stat().st_mtime)):
        yield Entry(path, _key_text(path))


def _key_text(path: Path) -> str:
    """Return the key of an entry as text; of a model, the name of its folder."""
    if not (path / LABEL).is_file():  # a model
        return path.name
    try:
        return ", ".join(
            f"{name} {_short(value)}" for name, value in json.loads((path / LABEL).read_text())["key"].items()
        )
    except (ValueError, KeyError, AttributeError):
        return "damaged"


def _short(value: Any) -> str:
    """Return a value as short text: nested keys in brackets, and only the first digits of a digest."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(item)}" for name, item in value.items()) + ")"
    text = str(value)
    return text[:8] if len(text) in (20, 64) and set(text) <= set(hexdigits) else text


def main(arguments: Sequence[str]) -> None:
    """Run `flap cache [list|clear] [--cache-dir DIR] [--kind KIND]`."""
    parser = argparse.ArgumentParser(prog="flap cache", description="List or clear what flap keeps on disk.")
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("--cache-dir", help="default: the environment's FLAP_CACHE_DIR, else the user's cache folder")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="only this kind; dense: evaluations of dense models; streams, offload: of runs that did not finish",
    )
    options = parser.parse_args(arguments)
    root = cache_root(options.cache_dir)
    selected = [entry for entry in entries(root) if options.kind in (None, entry.kind)]
    if options.action == "clear":
        _clear(selected, root, [options.kind] if options.kind else KINDS)
    else:
        _list(selected, root)


def _list(selected: list[Entry], root: Path) -> None:
    table = Table(title=f"{root}: {decimal(sum(entry.num_bytes for entry in selected))}", title_justify="left")
    for column in ("kind", "size", "age", "key"):
        table.add_column(column, overflow="fold")
    for entry in selected:
        table.add_row(entry.kind, decimal(entry.num_bytes), _age(entry.age_seconds), entry.key)
    Console().print(table)


def _clear(selected: list[Entry], root: Path, kinds: Sequence[str]) -> None:
    """Delete entries and locks that no process uses, and the temporary files that killed processes have left."""
    sizes = [(entry.num_bytes, remove_unused(entry.path)) for entry in selected]
    removed = [num_bytes for num_bytes, gone in sizes if gone]
    for kind in kinds:
        for lock in (root / kind).glob(".*.lock"):
            remove_leftovers(lock.with_name(lock.name[1:].rsplit(".", 2)[0]))
        for lock in (root / kind).glob("[!.]*.lock"):
            remove_unused(lock.with_suffix(""))
    print(f"removed {len(removed)} entries, {decimal(sum(removed))}")
    if stay := len(selected) - len(removed):
        print(f"{stay} stay: a process uses them, or no lock can be made there that would say so")


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
