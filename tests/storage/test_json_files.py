"""`load_json` refuses JSON that is nested too deeply.

If a file is missing, damaged or nested too deeply, `read_json` and `read_yaml` return an empty
value.
"""

from pathlib import Path

import pytest

from flap.storage import load_json, parse_json, read_json, read_yaml
from flap.storage.json_files import DEEPEST
from tests.helpers.marks import quick


def nested(levels: int) -> str:
    """Return nested lists as a text that is both JSON and YAML."""
    return "[" * levels + "]" * levels


def test_values_are_read() -> None:
    assert parse_json('{"a": {"b": [1, 2.5, null]}}') == {"a": {"b": [1, 2.5, None]}}


def test_as_deep_as_allowed_is_read() -> None:
    deepest = nested(DEEPEST)
    assert str(parse_json(deepest)) == deepest


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize("in_dict", [False, True])
def test_deeper_is_refused_at_once(levels: int, in_dict: bool, tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    lists = nested(levels)
    file.write_text(f'{{"a": {lists}}}' if in_dict else lists)
    with pytest.raises(ValueError, match=r"^nested deeper than 100 levels$"):
        load_json(file)
    assert read_json(file) == {}


@pytest.mark.parametrize("levels", quick(1, [DEEPEST + 1, 400, 5_000]))
def test_a_deep_yaml_file_counts_as_damaged(levels: int, tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    lists = nested(levels)
    file.write_text(f"a: {lists}")
    assert read_yaml(file) == {}
    file.write_text(lists)
    assert read_yaml(file, list) == []


@pytest.mark.parametrize("content", [b"", b"{torn", b"7", b"caf\xe9", b"\xff\xfe"])
def test_a_damaged_file_reads_as_an_empty_one(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert read_json(file) == {}
    assert read_yaml(file) == {}


def test_a_missing_file_reads_as_an_empty_one(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert read_json(missing) == {}
    assert read_yaml(missing) == {}
