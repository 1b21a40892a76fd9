"""flap reads prompts from files with the columns `prompt` or `messages`, and refuses wrong rows."""

import json
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from flap.data import Prompt, read_prompts

USER = {"role": "user", "content": "the cat?"}
SYSTEM = {"role": "system", "content": "Été."}
ASSISTANT = {"role": "assistant", "content": "sat"}
ROWS = [
    {"messages": [SYSTEM, USER, ASSISTANT]},
    {"messages": [USER, ASSISTANT, USER], "answer": "ran"},
    {"prompt": "the cat?", "answer": "sat"},
    {"prompt": "the cat?", "answer": " "},
    {"messages": [USER, {"role": "assistant", "tool_calls": []}], "text": "a"},
]
PROMPTS = [
    Prompt((SYSTEM, USER), "sat", True),
    Prompt((USER, ASSISTANT, USER), "ran", True),
    Prompt((USER,), "sat"),
    Prompt((USER,), None),
    Prompt((USER,), None, True),
]


def written(folder: Path, *rows: Any) -> str:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return str(path)


def test_rows_are_prompts_in_order_whatever_the_format(tmp_path: Path) -> None:
    columns = {
        name: [deepcopy(row.get(name)) for row in ROWS] for name in ("messages", "prompt", "answer")
    }
    # Logs of conversations have keys such as `created_at`, which no chat template reads.
    columns["messages"][0][0] = SYSTEM | {"created_at": datetime(2026, 12, 1)}
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "b.parquet"))
    assert (
        read_prompts(written(tmp_path, *ROWS), "f")
        == PROMPTS
        == read_prompts(str(tmp_path / "b.parquet"), "f")
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [{"role": "user"}]},
            "row 2: column 'messages' has a row that is not a list of {role, content}",
        ),
        (
            {"messages": [ASSISTANT]},
            "row 2: asks nothing that is text; expected it in 'prompt', or in the turns of",
        ),
        ({"messages": [USER, {**USER, "content": [1]}]}, "row 2: asks nothing"),
        ({"prompt": " "}, "row 2: asks nothing"),
        ({"prompt": None, "answer": "sat"}, "row 2: asks nothing"),
        ({"answer": "sat"}, "row 2: asks nothing"),
        (
            {"prompt": "a", "answer": 7},
            "row 2: the answer is no text; expected a string, or none at all",
        ),
        ([1], "cannot be read; expected a JSON object a line, in UTF-8 (line 3: no JSON object)"),
    ],
)
def test_a_row_that_is_no_prompt_is_one_line(row: Any, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, ROWS[0], row)
    with pytest.raises(ValueError) as error:
        read_prompts(path, "f")
    assert str(error.value).startswith(f"f={path}: {reason}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", "\n", "the file contains no prompts"),
        ("a.jsonl", '{"text": "a", "id": 1}', "no column 'messages' or 'prompt', only text, id"),
        ("a.parquet", "broken", "cannot be read; expected a table in Parquet ("),
        ("a.txt", "a", "prompts are in another format; expected a .jsonl or .parquet file with"),
        (
            "absent.jsonl",
            "",
            "no such file; expected a .jsonl or .parquet file with 'messages' or 'prompt'",
        ),
    ],
)
def test_a_file_without_prompts_is_one_line(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name != "absent.jsonl":
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_prompts(str(path), "f")
    assert str(error.value).startswith(f"f={path}: {reason}") and "\n" not in str(error.value)
