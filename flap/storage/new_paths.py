"""Find and remove the files and folders that are created for a run before the run begins.

If the run is refused, only these files and folders are removed.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def missing_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths that do not exist yet, among files in a folder, the folder and its parents.

    The paths are in an order in which they can be removed later.

    names: the names of the files, or of subfolders.
    """
    folder = folder.absolute()
    paths = [*(folder / name for name in names), folder, *folder.parents]
    return [path for path in paths if not os.path.lexists(path)]


def remove_paths(paths: Iterable[Path], whole: Path | None = None) -> None:
    """Remove files and empty folders in the given order.

    The folder `whole`, if it is one of the paths, is removed with its contents.
    """
    for path in paths:
        with suppress(OSError):  # the path does not exist, is not empty, or may not be removed
            if whole is not None and path == whole.absolute():
                shutil.rmtree(path)
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
