"""The command `flap cache`: list the cache entries (size, age, key) or delete them."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from string import hexdigits
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flap.storage.atomic_files import bytes_below, cache_root, remove_leftovers, remove_unused
from flap.storage.cache import LABEL

KINDS = ("statistics", "scores", "self", "dense", "models", "streams", "offload")


def entries(root: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Return the folder of every entry of the cache, sorted by kind and then from new to old."""
    paths = (path for kind in kinds for path in root.glob(f"{kind}/*"))
    folders = [path for path in paths if path.is_dir() and not path.name.startswith(".")]
    return sorted(folders, key=lambda path: (path.parent.name, -path.stat().st_mtime))


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
    act = _clear if options.action == "clear" else _list
    act(cache_root(options.cache_dir), [options.kind] if options.kind else KINDS)


def _list(root: Path, kinds: Sequence[str]) -> None:
    found = {path: bytes_below(path) for path in entries(root, kinds)}
    table = Table(title=Text(f"{root}: {decimal(sum(found.values()))}"), title_justify="left")
    for column in ("kind", "size", "age", "key"):
        table.add_column(column, overflow="fold")
    for path, size in found.items():
        table.add_row(path.parent.name, decimal(size), _age(time.time() - path.stat().st_mtime), Text(_key_text(path)))
    Console().print(table)


def _clear(root: Path, kinds: Sequence[str]) -> None:
    """Delete entries and locks that no process uses, and the temporary files that killed processes have left."""
    sizes = [(bytes_below(path), remove_unused(path)) for path in entries(root, kinds)]
    removed = [size for size, gone in sizes if gone]
    for kind in kinds:
        for lock in (root / kind).glob(".*.lock"):
            remove_leftovers(lock.with_name(lock.name[1:].rsplit(".", 2)[0]))
        for lock in (root / kind).glob("[!.]*.lock"):
            remove_unused(lock.with_suffix(""))
    print(f"removed {len(removed)} entries, {decimal(sum(removed))}")
    if stay := len(sizes) - len(removed):
        print(f"{stay} stay: a process uses them, or no lock can be made there that would say so")


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
