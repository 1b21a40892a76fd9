"""A run stores results in two files, and measures a result again if one of the files lacks it.

evaluation.json contains results such as an accuracy, which is a mean over documents.
documents.json.gz contains the results of the individual documents.
"""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from flap.evaluation import Measurement
from flap.evaluation.result_files import DENSE, Results
from flap.storage import Cache, Key
from tests.helpers.remembered import remembered

KEY = {"task": "a"}
FOUND = Measurement(
    {"a/acc": 0.5, "a/acc_stderr": 0.1},
    {"a/acc": [0.0, 1.0, 0.25, 0.1 + 0.2]},
    better={"a/acc": "higher"},
)


def measured(results: Results, key: Key, make: Callable[[], Measurement]) -> Measurement:
    """Read a task's results from the files, or measure them with `make` if a file lacks them."""
    return remembered(results.of({}), key, make)[0]


def never() -> Measurement:
    raise AssertionError("measured again")


def test_it_is_measured_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "run" / "evaluation.json")
    assert measured(results, KEY, lambda: FOUND) == FOUND
    assert measured(results, {"task": "b"}, Measurement) == Measurement()
    assert measured(Results(results.path), KEY, never) == FOUND
    [first, second] = json.loads(results.path.read_text()).values()
    assert (first["key"], first["numbers"], second["numbers"]) == (KEY, FOUND.numbers, {})
    stored = json.loads(gzip.decompress((tmp_path / "run" / "documents.json.gz").read_bytes()))
    assert list(stored.values()) == [FOUND.documents, {}]


@pytest.mark.parametrize("name", ["evaluation.json", "documents.json.gz"])
@pytest.mark.parametrize(
    "damage",
    [None, b"", b"{", b"[1]", gzip.compress(b"[]", mtime=0)[:-3], gzip.compress(b"{", mtime=0)],
)
def test_what_one_file_has_lost_is_measured_again(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    results = Results(tmp_path / "evaluation.json")
    measured(results, KEY, lambda: FOUND)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    again = Measurement({"a/acc": 0.25}, {"a/acc": [0.5, 0.0]})
    assert measured(results, KEY, lambda: again) == again
    assert measured(results, KEY, never) == again


def test_documents_of_numbers_that_are_gone_are_dropped(tmp_path: Path) -> None:
    results = Results(tmp_path / "evaluation.json")
    measured(results, KEY, lambda: FOUND)
    results.path.unlink()
    measured(results, {"task": "b"}, lambda: FOUND)
    assert len(json.loads(gzip.decompress((tmp_path / "documents.json.gz").read_bytes()))) == 1


def test_numbers_that_are_not_finite_are_null_for_other_readers_and_infinite_for_this_one(
    tmp_path: Path,
) -> None:
    found = Measurement({"a/perplexity@8": math.inf, "a/kl@8": 0.5}, {"a/kl@8": [0.5, math.nan]})
    results = Results(tmp_path / "evaluation.json")
    assert measured(results, KEY | {"plan": 1}, lambda: found) == found
    read_back = Measurement(found.numbers, {"a/kl@8": [0.5, math.inf]})
    assert measured(results, KEY | {"plan": 1}, never) == read_back
    assert remembered(Cache(tmp_path).of(DENSE), KEY, lambda: found)[0] == found
    assert remembered(Cache(tmp_path).of(DENSE), KEY, never) == (read_back, "hit")
    [entry] = json.loads(results.path.read_text(), parse_constant=pytest.fail).values()
    [values] = json.loads(
        gzip.decompress((tmp_path / "documents.json.gz").read_bytes()), parse_constant=pytest.fail
    ).values()
    assert (entry["numbers"], values) == (
        {"a/perplexity@8": None, "a/kl@8": 0.5},
        {"a/kl@8": [0.5, None]},
    )
