"""Check that saving the checkpoint does not delete files that the run reads."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flap.config import FlapConfig


def check_inputs_stay(config: FlapConfig, target: Path) -> None:
    """Check that no file or folder that the config names lies in the folder of the checkpoint.

    Saving a checkpoint replaces the whole folder of the checkpoint, so files in this folder may be
    deleted. A symbolic link that the config names must not lie in this folder, and must not lead to
    a file or folder in it.

    Raises:
        ValueError: a file or folder that the config names might be deleted. The message names the
            config field that contains the path of this file or folder.
    """
    # os.path.realpath accepts a link that leads to itself, for which Path.resolve fails
    folder = Path(os.path.realpath(target))
    for field, name in _names(asdict(config), ""):
        if not os.access(name, os.F_OK):  # the string is not the path of an existing file or folder
            continue
        for place in _places(Path(name)):
            if folder in (place, *place.parents):
                raise ValueError(
                    f"checkpoint.dir={config.checkpoint.dir or target}: saving replaces this "
                    f"folder and deletes {field}={name}, which this run reads; "
                    "name another folder"
                )


def _names(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield the field and the value of every string in a config, as any string may be a path."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if field.endswith("dataset"):  # a mixture of texts is a dict, whose keys may be paths
                yield field, str(key)
            inner = f"{field}.{key}" if field else str(key)
            if inner != "checkpoint":
                yield from _names(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item, field)


def _places(path: Path) -> Iterator[Path]:
    """Yield the absolute path; for a symbolic link, also each path in its chain of links."""
    place = path.parent.resolve() / path.name
    yield place
    while place.is_symlink():
        place = place.parent / place.readlink()
        place = place.parent.resolve() / place.name
        yield place
