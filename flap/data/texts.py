"""Read texts by name or from a local file. A named text has separate parts for calibration and evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flap.config import one_line
from flap.data.named import DATASETS, Split
from flap.data.text import Text
from flap.storage import write_text

FILE_FORMATS = {
    ".txt": "text in UTF-8",
    ".jsonl": "a JSON object a line, in UTF-8",
    ".parquet": "a table in Parquet",
}
Template = Callable[[list[Any]], str]  # the messages of a conversation -> its text


def read_text(dataset: str, split: Split, field: str, template: Template | None = None) -> Text:
    """Return the text of a data set's name or of a local file. field: the config key that error messages name.

    template: the file holds conversations, the column 'messages', which it makes into text.

    Raises:
        ValueError: the name is unknown, the file is missing, empty or unreadable, or nothing can be downloaded.
    """
    if dataset in DATASETS:
        if template is not None:
            raise ValueError(f"{field}={dataset}: it holds no conversations; leave out chat_template")
        try:
            return DATASETS[dataset](split)
        except ConnectionError as error:
            raise ValueError(f"{field}={dataset}: {error}") from error
    path = Path(dataset)
    if path.suffix not in FILE_FORMATS or not path.is_file():
        reason = "no such file" if path.suffix in FILE_FORMATS else "unknown dataset"
        names = ", ".join(DATASETS)
        raise ValueError(f"{field}={dataset}: {reason}; expected {names}, or a .txt, .jsonl or .parquet file")
    text = Text.joined(path.name, _documents(path, field, template), str(path.resolve()))
    if not text.text.strip():
        raise ValueError(f"{field}={dataset}: the file holds no text")
    return text


def _documents(path: Path, field: str, template: Template | None) -> list[str]:
    """Return a .txt file unchanged, or the rows of the column of a .jsonl or .parquet file."""
    if path.suffix == ".txt" and template is not None:
        raise ValueError(f"{field}={path}: it holds no conversations; leave out chat_template")
    try:
        if path.suffix == ".txt":
            return [path.read_text(encoding="utf-8")]
        table = _table(path)
    except (OSError, ValueError) as error:
        expected, reason = FILE_FORMATS[path.suffix], one_line(error, 120)
        raise ValueError(f"{field}={path}: cannot be read; expected {expected} ({reason})") from error
    column = "text" if template is None else "messages"
    if column not in table.column_names:
        hint = "; chat_template: true makes text of 'messages'" if "messages" in table.column_names else ""
        raise ValueError(f"{field}={path}: no column '{column}', only {', '.join(table.column_names)}{hint}")
    rows: list[Any] = table.column(column).to_pylist()
    if template is not None:
        return [_conversation(row, template, f"{field}={path}") for row in rows]
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"{field}={path}: column 'text' holds something that is no text (null or a number)")
    return rows


def _table(path: Path) -> Any:
    """Return the table of a .jsonl or .parquet file."""
    import pyarrow.json  # here, because few runs need it, and it takes 30 MB of memory
    import pyarrow.parquet

    return pyarrow.json.read_json(path) if path.suffix == ".jsonl" else pyarrow.parquet.read_table(path)


def _conversation(messages: Any, template: Template, where: str) -> str:
    """Return the text of a conversation."""
    valid = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    # a table has every key in every row, with null where the file had none
    given = [{key: value for key, value in one.items() if value is not None} for one in messages] if valid else []
    if not given or not all("role" in one and ("content" in one or "tool_calls" in one) for one in given):
        raise ValueError(f"{where}: column 'messages' holds something else than lists of {{role, content}}")
    try:
        return template(given)
    except Exception as error:  # templates are programs of the tokenizer and raise errors of any type
        raise ValueError(f"{where}: the tokenizer's chat template refuses a conversation ({error})") from error


def save_text(text: Text, path: Path) -> None:
    """Write a text as .jsonl, a document a line, which `read_text` and other tools read."""
    write_text(path, "".join(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in text.documents))
