"""JSON and YAML that is damaged, or nested so deeply that no program could walk through it."""

from pathlib import Path

import pytest

from flap.storage import load_json, parse_json, read_json, read_yaml
from flap.storage.json_files import DEEPEST


def nested(levels: int) -> str:
    """Lists inside one another, which is both JSON and YAML."""
    return "[" * levels + "]" * levels


def test_as_deep_as_allowed_is_read() -> None:
    assert str(parse_json(nested(DEEPEST))) == nested(DEEPEST)
    assert parse_json('{"a": {"b": [1, 2.5, null]}}') == {"a": {"b": [1, 2.5, None]}}


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize("text", ["{}", '{{"a": {}}}'])
def test_deeper_is_refused_at_once(levels: int, text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(text.format(nested(levels)))
    with pytest.raises(ValueError, match=r"^nested deeper than 100 levels$"):
        load_json(tmp_path / "deep.json")
    assert read_json(tmp_path / "deep.json") == {}


@pytest.mark.parametrize("levels", [DEEPEST + 1, 400, 5_000])
def test_a_deep_yaml_file_counts_as_damaged(levels: int, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(f"a: {nested(levels)}")
    assert read_yaml(tmp_path / "deep.yaml") == {}
    (tmp_path / "deep.yaml").write_text(nested(levels))
    assert read_yaml(tmp_path / "deep.yaml", list) == []


@pytest.mark.parametrize("content", [b"", b"{torn", b"7", b"caf\xe9", b"\xff\xfe"])
def test_a_damaged_file_reads_as_an_empty_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") == {}
    assert read_yaml(tmp_path / "file") == {}
    assert read_json(tmp_path / "absent") == read_yaml(tmp_path / "absent") == {}
