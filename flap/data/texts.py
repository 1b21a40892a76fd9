"""Read texts by name or from a local file. A named text has separate parts for calibration and evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flap.config import one_line
from flap.data.named import DATASETS, Split
from flap.data.rows import column
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
    text = Text.joined(path.name, _documents(path, field, template, split == "calibration"), str(path.resolve()))
    if not text.text.strip():
        raise ValueError(f"{field}={dataset}: the file holds no text")
    try:
        text.text.encode()
    except UnicodeEncodeError as error:  # JSON can escape one
        raise ValueError(f"{field}={dataset}: holds half of a character, as \\ud83d without its other half") from error
    return text


def _documents(path: Path, field: str, template: Template | None, templates: bool) -> list[str]:
    """Return a .txt file unchanged, or the rows of the column of a .jsonl or .parquet file.

    templates: whether the field has the option `chat_template`.
    """
    if path.suffix == ".txt" and template is not None:
        raise ValueError(f"{field}={path}: it holds no conversations; leave out chat_template")
    wanted = "text" if template is None else "messages"
    try:
        if path.suffix == ".txt":
            return [path.read_text(encoding="utf-8-sig")]
        rows, names = column(path, wanted)
    except (OSError, ValueError) as error:
        expected, reason = FILE_FORMATS[path.suffix], one_line(error, 120)
        raise ValueError(f"{field}={path}: cannot be read; expected {expected} ({reason})") from error
    if names and wanted not in names:
        hint = "; chat_template: true makes text of 'messages'" if "messages" in names and templates else ""
        raise ValueError(f"{field}={path}: no column '{wanted}', only {', '.join(names)}{hint}")
    if template is not None:
        return [_conversation(row, template, f"{field}={path}") for row in rows]
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"{field}={path}: column 'text' holds something that is no text (null or a number)")
    return rows


def _conversation(messages: Any, template: Template, where: str) -> str:
    """Return the text of a conversation."""
    valid = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    # a key with null is one that a message has not; what is within arguments of a call is the file's own
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
