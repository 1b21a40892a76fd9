"""Read texts by name or from a local file, and check texts in memory.

A text that is read by name has separate splits for calibration and evaluation. A text from a file
or in memory has no splits.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flap.config import did_you_mean, one_line, shown
from flap.data.mixture import SELF, TextsInMemory
from flap.data.named_prompts import PROMPTS
from flap.data.named_texts import DATASETS, Split, named_text
from flap.data.text import Text
from flap.storage import parse_json

FILE_FORMATS = {
    ".txt": "text in UTF-8",
    ".jsonl": "a JSON object a line, in UTF-8",
    ".parquet": "a table in Parquet",
}
# The prefixes of the config keys whose value may be `self`, the text that the model itself
# generates.
WRITTEN_BY_THE_MODEL = ("calibration.", "recover.")
# all names that `calibration.dataset` accepts, besides the paths of files
NAMES = (*DATASETS, *PROMPTS, SELF)


def read_text(dataset: str, split: Split, field: str) -> Text:
    """Read a text by name or from a local file.

    dataset: the name of the text, or the path of the file.
    split: the split of a named text to read. A file has no splits, and is read as a whole.
    field: the config key that error messages name.

    Raises:
        ValueError: the name is unknown, the file is missing, empty or unreadable, or the text
            cannot be downloaded.
    """
    path = Path(dataset)
    where = f"{field}={shown(dataset)}"
    if dataset in DATASETS:
        try:
            return named_text(dataset, split)
        except ConnectionError as error:
            raise ValueError(f"{where}: {error}") from error
    if path.suffix not in FILE_FORMATS or not path.is_file():
        reason = "no such file" if path.suffix in FILE_FORMATS else "unknown dataset"
        names = list(DATASETS)
        if split == "calibration":
            names += PROMPTS
        if field.startswith(WRITTEN_BY_THE_MODEL):
            names.append(SELF)
        hint = did_you_mean(dataset, names)
        expected = ", ".join(names)
        raise ValueError(
            f"{where}: {reason}; {hint}expected {expected}, or a .txt, .jsonl or .parquet file"
        )
    text = Text.joined(path.name, _documents(path, where), str(path.resolve()))
    if not text.text.strip():
        raise ValueError(f"{where}: the file contains no text")
    return text


def texts_in_memory(texts: Sequence[Any], field: str) -> TextsInMemory:
    """Check a list of texts that a caller passes to `flap.prune`. Each text becomes a document.

    field: the config key that error messages name.

    Raises:
        ValueError: the list contains only white space, or one of its items is not a string, cannot
            be encoded in UTF-8, or is the name of a text or a file instead of a text.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{field}[{i}] is {type(text).__name__}: expected a text, str")
        if text in NAMES or (text.endswith(tuple(FILE_FORMATS)) and len(text.split()) == 1):
            raise ValueError(
                f"{field}[{i}]={shown(text)}: expected a text, because a list holds the texts "
                "themselves; texts by name are a mapping, {name: weight}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{field}[{i}]: expected whole characters ({error.reason})") from error
    if not "".join(texts).strip():
        raise ValueError(f"{field}: the list contains no text")
    return TextsInMemory(tuple(texts))


def _documents(path: Path, where: str) -> list[str]:
    """Return the documents of a file.

    A .txt file is one document. In a .jsonl or .parquet file, each row has a document in the column
    'text'.
    """
    rows, names = read_rows(path, where, ("text",))
    if names and "text" not in names:
        raise ValueError(
            f"{where}: no column 'text', only {', '.join(names)}; a file of prompts has a column "
            "'prompt' or 'messages', and is for calibration or asked by eval.generation.tasks"
        )
    documents: list[Any] = [row.get("text") for row in rows]
    if not all(isinstance(document, str) for document in documents):
        raise ValueError(f"{where}: column 'text' has values that are not strings")
    return documents


def read_rows(
    path: Path, where: str, columns: tuple[str, ...] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the given columns of a file. Return the rows, and the names of all columns of the file.

    A .txt file counts as one row with the column 'text'.

    where: the beginning of error messages.
    columns: the names of the columns to read; None reads all columns.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        if path.suffix == ".txt":
            return [{"text": path.read_text(encoding="utf-8-sig")}], ["text"]
        if path.suffix == ".jsonl":
            return _of_lines(path, columns)
        return _of_table(path, columns)
    except (OSError, ValueError) as error:
        expected = FILE_FORMATS[path.suffix]
        reason = one_line(error, 120)
        raise ValueError(f"{where}: cannot be read; expected {expected} ({reason})") from error


def _of_lines(
    path: Path, columns: tuple[str, ...] | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the given columns of a .jsonl file. Also return the names of all columns of the file.

    The file is not read as a pyarrow table, because in a table, all values of a column must have
    the same type, and a row that lacks a key gets null for this key.
    """
    rows = list[dict[str, Any]]()
    names = dict[str, None]()
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                # Encoding raises an error if a text contains half of a surrogate pair, which can
                # come from an escape such as \ud83d in the JSON.
                json.dumps(row, ensure_ascii=False).encode()
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            names |= dict.fromkeys(row)
            if columns is not None:
                row = {name: row[name] for name in columns if name in row}
            rows.append(row)
    return rows, list(names)


def _of_table(
    path: Path, columns: tuple[str, ...] | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the given columns of a Parquet file. Also return the names of all columns of the file.

    Keys whose value is null are left out of the rows.
    """
    import pyarrow.parquet  # imported here, because it takes 30 MB of memory and few runs need it

    table = pyarrow.parquet.read_table(path)
    rows_of = table
    if columns is not None:
        rows_of = table.select([name for name in columns if name in table.column_names])
    rows = rows_of.to_pylist()
    return [_without_nulls(row) for row in rows], table.column_names


def _without_nulls(value: Any) -> Any:
    """Remove null values, which Parquet stores for missing keys, from dicts at every level."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
