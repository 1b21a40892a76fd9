"""Prompts from a file: what a model is asked, and the right answers if the file has them."""

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

    A row has `messages`, a conversation, or `prompt`, which is one turn of a user. If the last turn
    of `messages` is the assistant's, it is the answer. Otherwise the answer is in the column
    `answer`, if there is one.

    field: the config key that error messages name.

    Raises:
        ValueError: the file is missing, empty or unreadable, or a row is no prompt.
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
        raise ValueError(f"{where}: the file holds no prompts")
    return [_prompt(row, f"{where}: row {number}") for number, row in enumerate(rows, start=1)]


def holds_prompts(path: str) -> bool:
    """Return whether a file has prompts. Returns False if the file cannot be read."""
    try:
        names = (
            set(read_rows(Path(path), path, COLUMNS)[1]) if Path(path).suffix in FORMATS else set()
        )
    except ValueError:
        return False
    return bool({"messages", "prompt"} & names)


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    """Return the prompt of a row. If a row has `messages` and `prompt`, the conversation counts."""
    if row.get("messages") is not None:
        turns = _checked_messages(row["messages"], where)
        answered = turns[-1]["role"] == "assistant"
        answer = turns.pop().get("content", "") if answered else row.get("answer")
    else:
        turns = [{"role": "user", "content": row.get("prompt")}]
        answer = row.get("answer")
    asked = bool(turns) and str(turns[-1].get("content") or "").strip()
    if not asked or not all(isinstance(turn.get("content", ""), str) for turn in turns):
        raise ValueError(
            f"{where}: asks nothing that is text; expected it in 'prompt', or in the "
            "turns of 'messages'"
        )
    if not isinstance(answer, str | None):
        raise ValueError(f"{where}: the answer is no text; expected a string, or none at all")
    answer = answer if answer and answer.strip() else None  # a turn that calls a tool has no text
    return Prompt(tuple(turns), answer, row.get("messages") is not None)


def _checked_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """Return the messages of a conversation, without keys whose value is null."""
    valid = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    # In a Parquet file, a message has null for the keys that only other messages have. Templates
    # read no times or bytes.
    given = (
        [{key: value for key, value in one.items() if isinstance(value, JSON)} for one in messages]
        if valid
        else []
    )
    if not given or not all(
        "role" in one and ("content" in one or "tool_calls" in one) for one in given
    ):
        raise ValueError(
            f"{where}: column 'messages' has a row that is not a list of {{role, content}}"
        )
    return given
