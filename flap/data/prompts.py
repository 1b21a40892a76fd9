"""Read prompts from a file, with the right answers if the file contains answers."""

from pathlib import Path
from typing import Any

from flap.config import shown
from flap.data.text import Prompt
from flap.data.text_files import read_rows

COLUMNS = ("messages", "prompt", "answer")
FORMATS = (".jsonl", ".parquet")
JSON = str | list | dict | bool | int | float


def read_prompts(path: str, field: str) -> list[Prompt]:
    """Return the rows of a .jsonl or .parquet file as prompts, in order.

    A row has a conversation in the column `messages`, or a single turn of a user in the column
    `prompt`. If the last turn of `messages` is the assistant's, this turn is the right answer.
    Otherwise, the right answer is in the column `answer`, if the file has this column.

    field: the config key that error messages name.

    Raises:
        ValueError: the file is missing, empty or unreadable, or a row contains no prompt.
    """
    file = Path(path)
    where = f"{field}={shown(path)}"
    if file.suffix not in FORMATS or not file.is_file():
        reason = "no such file" if file.suffix in FORMATS else "prompts are in another format"
        raise ValueError(
            f"{where}: {reason}; expected a .jsonl or .parquet file with 'messages' or 'prompt'"
        )
    rows, names = read_rows(file, where, COLUMNS)
    if names and not {"messages", "prompt"} & set(names):
        raise ValueError(f"{where}: no column 'messages' or 'prompt', only {', '.join(names)}")
    if not rows:
        raise ValueError(f"{where}: the file contains no prompts")
    return [_prompt(row, f"{where}: row {number}") for number, row in enumerate(rows, start=1)]


def holds_prompts(path: str) -> bool:
    """Return whether a file has a column with prompts, or False if the file cannot be read."""
    if Path(path).suffix not in FORMATS:
        return False
    try:
        _, names = read_rows(Path(path), path, COLUMNS)
    except ValueError:
        return False
    return "messages" in names or "prompt" in names


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    """Return the prompt of a row. If a row has `messages` and `prompt`, `messages` is used."""
    answer = row.get("answer")
    is_conversation = row.get("messages") is not None
    if is_conversation:
        turns = _checked_messages(row["messages"], where)
        if turns[-1]["role"] == "assistant":
            answer = turns.pop().get("content", "")
    else:
        turns = [{"role": "user", "content": row.get("prompt")}]

    contents = [turn.get("content", "") for turn in turns]
    are_texts = all(isinstance(content, str) for content in contents)
    if not contents or not are_texts or not contents[-1].strip():
        raise ValueError(
            f"{where}: asks nothing that is text; expected it in 'prompt', or in the "
            "turns of 'messages'"
        )
    if not isinstance(answer, str | None):
        raise ValueError(f"{where}: the answer is no text; expected a string, or none at all")
    if answer is not None and not answer.strip():
        answer = None  # an assistant's turn may contain no text, for example if it calls a tool
    return Prompt(tuple(turns), answer, is_conversation)


def _checked_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """Check the messages of a conversation, and drop values that are null, times or bytes."""
    valid = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    given = list[dict[str, Any]]()
    if valid:
        # If a message lacks a key that another message has, Parquet stores null for this key. Times
        # and bytes are dropped because chat templates do not read them.
        for message in messages:
            given.append({key: value for key, value in message.items() if isinstance(value, JSON)})
    complete = all("role" in one and ("content" in one or "tool_calls" in one) for one in given)
    if not given or not complete:
        raise ValueError(
            f"{where}: column 'messages' has a row that is not a list of {{role, content}}"
        )
    return given
