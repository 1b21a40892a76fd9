"""The files and folders that a run creates before it begins.

A run that is refused removes them, and nothing else.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def missing_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths that do not exist among these names in a folder and the folder itself.

    Folders above it that do not exist are included. The paths are in the order in which they can be
    removed.
    """
    folder = folder.absolute()
    paths = [*(folder / name for name in names), folder, *folder.parents]
    return [path for path in paths if not os.path.lexists(path)]


def remove_paths(paths: Iterable[Path], whole: Path | None = None) -> None:
    """Remove files, and folders that are empty by then.

    The folder `whole` is removed with its content.
    """
    for path in paths:
        with suppress(OSError):  # the path does not exist, is not empty, or may not be removed
            if whole is not None and path == whole.absolute():
                shutil.rmtree(path)
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
