"""Error messages name the allowed values, and stay short even if the wrong value is long."""

from dataclasses import dataclass

import pytest

from flap.config import did_you_mean, one_line, require, require_counts, shown

LONG = "x" * 5_000


def test_a_long_value_is_cut_in_the_middle() -> None:
    value = f"/data/{LONG}/text.jsonl"
    assert len(shown(value)) <= 200
    assert shown(value).startswith("/data/xxx") and shown(value).endswith("xxx/text.jsonl")
    assert shown("x" * 200) == "x" * 200
    assert len(shown([0.5] * 1_000)) <= 200


def test_no_error_shows_more_of_it() -> None:
    with pytest.raises(ValueError, match=r"^model\.dtype=x") as refused:
        require(False, "model.dtype", LONG, "float32")
    assert len(str(refused.value)) <= 240


def test_long_words_of_any_error_are_cut() -> None:
    line = one_line(OSError(36, "File name too long", LONG))
    assert line.startswith("[Errno 36] File name too long: 'xxx") and len(line) < 250
    assert one_line(ValueError("two\n lines"), 5) == "two l"


@dataclass
class Counted:
    """A class with two options that are whole numbers."""

    windows: int | None = None
    tokens: int = 8


def test_a_count_that_is_too_small_is_named_and_null_if_it_is_allowed() -> None:
    require_counts(Counted(), "some", windows=1, tokens=8)
    with pytest.raises(
        ValueError, match=r"^some\.windows=0: expected null or a whole number >= 1$"
    ):
        require_counts(Counted(windows=0), "some", windows=1, tokens=8)
    with pytest.raises(ValueError, match=r"^some\.tokens=7: expected a whole number >= 8$"):
        require_counts(Counted(tokens=7), "some", windows=1, tokens=8)


def test_a_name_that_is_near_or_begins_so_is_suggested() -> None:
    names = ["boolq-passages", "WIFV", "wikitext2"]
    assert did_you_mean("wifv", names) == "did you mean WIFV? "
    assert did_you_mean("boolq", names) == "did you mean boolq-passages? "
    assert did_you_mean("wikitxt2", names) == "did you mean wikitext2? "
    assert did_you_mean("", names) == did_you_mean("my.txt", names) == ""
