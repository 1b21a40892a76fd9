"""Check the paths in a config, and names that may be paths, before files are read or written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flap.config.messages import shown

# Maximum bytes of a folder's path. Linux allows 4,095 bytes, but the path of a file in the folder
# is longer than the folder's path. Without this limit, a run might fail after hours, when it writes
# such a file.
LONGEST_PATH = 3_000
LONGEST_NAME = 255  # maximum bytes of a file's name on all common file systems


def check_path(field: str, path: str) -> None:
    """Check that a path, or the name of a text or task, is valid and not too long.

    Raises:
        ValueError: the path or one of its components is too long, or the path is not UTF-8, so that
            a report could not contain it.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{field}={shown(ascii(path))}: must be text in UTF-8") from error
    if size > LONGEST_PATH:
        raise ValueError(
            f"{field}={shown(path)}: must be at most {LONGEST_PATH:,} bytes long,"
            f" but has {size:,} bytes"
        )
    longest = max(len(name.encode()) for name in path.split("/"))
    if longest > LONGEST_NAME:
        raise ValueError(
            f"{field}={shown(path)}: each name in it must be at most {LONGEST_NAME} bytes long,"
            f" but one has {longest:,} bytes"
        )


def home_replaced(field: str, path: str) -> str:
    """Replace a leading ~ by the home directory of the user, as a shell does.

    Raises:
        ValueError: the path begins with ~name, and there is no user of this name.
    """
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{field}={shown(path)}: the folder of this user is unknown") from error


def paths_in(dataset: Any) -> Iterator[str]:
    """Yield the names and paths of texts in the value of an option such as `calibration.dataset`.

    dataset: a name or a path, a list of names and paths, or a mapping whose keys are names and
        paths.
    """
    if isinstance(dataset, str):
        yield dataset
    elif isinstance(dataset, Mapping | list | tuple):
        yield from (name for name in dataset if isinstance(name, str))
