"""The rows of a .jsonl or .parquet file, as they are in it."""

import json
from pathlib import Path
from typing import Any


def column(path: Path, name: str) -> tuple[list[Any], list[str]]:
    """Return a column's values, None where a row has none, and the names of all columns.

    A .jsonl file is read line by line, not as a table: a table has one type for a column, and each key in every row.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    return _of_lines(path, name) if path.suffix == ".jsonl" else _of_table(path, name)


def _of_lines(path: Path, name: str) -> tuple[list[Any], list[str]]:
    values, names = list[Any](), dict[str, None]()
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = _object(line, number)
                values.append(row.get(name))
                names |= dict.fromkeys(row)
    return values, list(names)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is none")
    return row


def _of_table(path: Path, name: str) -> tuple[list[Any], list[str]]:
    import pyarrow.parquet  # here, because few runs need it, and it takes 30 MB of memory

    table = pyarrow.parquet.read_table(path)
    values = table.column(name).to_pylist() if name in table.column_names else []
    return [_without_nulls(value) for value in values], table.column_names


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that other rows of its table have and this one has not."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
