"""Read texts by name or from a local file. A named text has separate parts for calibration and evaluation."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.json
import pyarrow.parquet

from flap.data.named import DATASETS, Split

FILE_FORMATS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Text:
    """A long text with its name and origin."""

    name: str
    text: str
    origin: str

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the text in hex digits; it detects that two uses have the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_text(dataset: str, split: Split, field: str) -> Text:
    """Return the text of a data set's name or of a local file. field: the config key that error messages name.

    Raises:
        ValueError: the name is unknown, the file is missing, empty or unreadable, or nothing can be downloaded.
    """
    if dataset in DATASETS:
        try:
            text, origin = DATASETS[dataset](split)
        except ConnectionError as error:
            raise ValueError(f"{field}={dataset}: {error}") from error
        return Text(dataset, text, origin)
    path = Path(dataset)
    if path.suffix not in FILE_FORMATS or not path.is_file():
        reason = "no such file" if path.suffix in FILE_FORMATS else "unknown dataset"
        names = ", ".join(DATASETS)
        raise ValueError(f"{field}={dataset}: {reason}; expected {names}, or a .txt, .jsonl or .parquet file")
    text = _read_file(path, field)
    if not text.strip():
        raise ValueError(f"{field}={dataset}: the file holds no text")
    return Text(path.name, text, str(path.resolve()))


def _read_file(path: Path, field: str) -> str:
    """Return a .txt file unchanged, or the column 'text' of a .jsonl or .parquet file, joined by empty lines."""
    try:
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8")
        table = pyarrow.json.read_json(path) if path.suffix == ".jsonl" else pyarrow.parquet.read_table(path)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{field}={path}: cannot be read as {path.suffix} ({type(error).__name__})") from error
    if "text" not in table.column_names:
        raise ValueError(f"{field}={path}: no column 'text', only {', '.join(table.column_names)}")
    rows = table.column("text").to_pylist()
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"{field}={path}: column 'text' holds something that is no text (null or a number)")
    return "\n\n".join(rows)
