"""Find and remove the files and folders that are created for a run before the run begins.

If the run is refused, for example because an option is invalid, these files and folders are
removed. Files and folders that existed before are kept.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def missing_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the missing paths among the files in a folder, the folder itself, and its parents.

    If the paths are created later, they can be removed in the order in which they are returned:
    first the files, then the folder, then its parents.

    names: the names of the files or subfolders in the folder.
    """
    folder = folder.absolute()
    paths = [*(folder / name for name in names), folder, *folder.parents]
    return [path for path in paths if not os.path.lexists(path)]


def remove_paths(paths: Iterable[Path], whole: Path | None = None) -> None:
    """Remove files and empty folders in the given order. Folders that contain files are kept.

    whole: a folder that is removed together with its contents if it is one of the paths.
    """
    for path in paths:
        with suppress(OSError):  # the path does not exist, is not empty, or may not be removed
            if whole is not None and path == whole.absolute():
                shutil.rmtree(path)
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
