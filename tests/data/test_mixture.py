"""What `calibration.dataset` may be."""

from pathlib import Path
from typing import Any

import pytest

from flap.data import Part, parse

FIELD = "calibration.dataset"


@pytest.mark.parametrize(
    ("dataset", "parts"),
    [
        ("c4", [Part("c4")]),
        (["c4", "self"], [Part("c4"), Part("self")]),
        ({"c4": 1, "self": 2.5}, [Part("c4"), Part("self", 2.5)]),
        ({"c4": 0, "my.jsonl": 1}, [Part("my.jsonl")]),
        ({"a.jsonl": {"weight": 2, "packing": False, "chat_template": True}}, [Part("a.jsonl", 2.0, False, True)]),
        ({"a.jsonl": {"packing": False}, "c4": {}}, [Part("a.jsonl", packing=False), Part("c4")]),
        ({"c4": {"weight": 1, "packing": None, "chat_template": None}}, [Part("c4")]),
    ],
)
def test_a_name_a_list_or_a_mapping(dataset: Any, parts: list[Part]) -> None:
    assert parse(dataset, FIELD) == parts


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"c4": -1}, r"calibration\.dataset\.c4=-1: expected a weight >= 0"),
        ({"c4": "much"}, r"calibration\.dataset\.c4=much: expected a weight >= 0"),
        ({"c4": True}, r"calibration\.dataset\.c4=True: expected a weight >= 0"),
        ({"c4": float("nan")}, r"calibration\.dataset\.c4=nan: expected a weight >= 0"),
        ({"c4": 0, "self": 0}, r"calibration\.dataset=.*: expected at least one text with a weight above 0"),
        ({}, r"calibration\.dataset={}: expected at least one text"),
        ([], r"calibration\.dataset=\[\]: expected at least one text"),
        ({"c4": 1e300}, r"calibration\.dataset\.c4=1e\+300: expected a weight >= 0 and at most 1e\+09"),
        ({"a.txt": 1, "./a.txt": 1}, r"calibration\.dataset=.*: expected each text once"),
        (["c4", "c4"], r"calibration\.dataset=\['c4', 'c4'\]: expected each text once"),
        ({"c4": {"wieght": 1}}, r"calibration\.dataset\.c4=wieght: expected weight, packing, chat_template"),
        ({"c4": {"packing": "no"}}, r"calibration\.dataset\.c4\.packing=no: expected true or false"),
        ({"c4": {"packing": 0}}, r"calibration\.dataset\.c4\.packing=0: expected true or false"),
        ({"c4": {"chat_template": 1}}, r"calibration\.dataset\.c4\.chat_template=1: expected true or false"),
        (5, r"calibration\.dataset=5: expected a text, \[text, text\] or {text: weight"),
    ],
)
def test_what_is_none_of_these_is_named(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(dataset, FIELD)


def test_a_file_under_two_names_is_one_text(tmp_path: Path) -> None:
    file, link = tmp_path / "a.txt", tmp_path / "link.txt"
    file.write_text("a")
    link.symlink_to(file)
    with pytest.raises(ValueError, match="expected each text once"):
        parse([str(file), str(link)], FIELD)
