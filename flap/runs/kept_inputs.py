"""Check that the checkpoint does not replace a folder that holds what the run reads."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flap.config import FlapConfig


def check_inputs_stay(config: FlapConfig, target: Path) -> None:
    """Check that no file or folder that the config names lies in the folder of the checkpoint.

    That folder is replaced as a whole. Symbolic links are followed in both directions: a link in
    the folder that leads out of it would be deleted, and so would a file that a link elsewhere
    leads to.

    Raises:
        ValueError: a file or folder would be deleted; names its field.
    """
    # unlike Path.resolve, realpath takes links that lead to themselves
    folder = Path(os.path.realpath(target))
    for field, name in _names(asdict(config), ""):
        if not os.access(name, os.F_OK):  # no path, or a text that is too long for a path
            continue
        for place in _places(Path(name)):
            if folder in (place, *place.parents):
                raise ValueError(
                    f"checkpoint.dir={config.checkpoint.dir or target}: is replaced as a whole, "
                    f"with {field}={name}, which this run reads; name another folder"
                )


def _names(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield each text in a config that may be a path, with its field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if field.endswith("dataset"):  # a mixture has its texts as keys
                yield field, str(key)
            inner = f"{field}.{key}" if field else str(key)
            if inner != "checkpoint":
                yield from _names(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item, field)


def _places(path: Path) -> Iterator[Path]:
    """Yield the place of a path, and each place that it leads to if it is a symbolic link."""
    place = path.parent.resolve() / path.name
    yield place
    while place.is_symlink():
        place = place.parent / place.readlink()
        place = place.parent.resolve() / place.name
        yield place
