"""`calibration.dataset` can be one text, a list of texts, or texts with weights and options."""

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
        (
            {"a.jsonl": {"weight": 2, "chat_template": True}, "c4": {}},
            [Part("a.jsonl", 2.0, True), Part("c4")],
        ),
        ({"c4": {"weight": 1, "chat_template": None}}, [Part("c4")]),
    ],
)
def test_a_name_a_list_or_a_mapping(dataset: Any, parts: list[Part]) -> None:
    assert parse(dataset, FIELD) == parts


def test_a_file_under_two_names_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    link = tmp_path / "link.txt"
    file.write_text("a")
    link.symlink_to(file)
    with pytest.raises(ValueError, match="expected each text once"):
        parse([str(file), str(link)], FIELD)
