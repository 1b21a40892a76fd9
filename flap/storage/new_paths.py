"""The files and folders that a run creates before it begins.

If a run is refused, it removes exactly these files and folders.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def missing_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths that do not exist: names in a folder, the folder, and its parents.

    The paths are sorted in the order in which they can be removed.
    """
    folder = folder.absolute()
    paths = [*(folder / name for name in names), folder, *folder.parents]
    return [path for path in paths if not os.path.lexists(path)]


def remove_paths(paths: Iterable[Path], whole: Path | None = None) -> None:
    """Remove files, and then folders that are empty.

    The folder `whole` is removed with its contents.
    """
    for path in paths:
        with suppress(OSError):  # the path does not exist, is not empty, or may not be removed
            if whole is not None and path == whole.absolute():
                shutil.rmtree(path)
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
