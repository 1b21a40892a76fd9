"""What a run has measured is in two files, and is measured again where either of them does not have it."""

import gzip
import json
import math
from pathlib import Path

import pytest

from flap.evaluation import Measurement
from flap.evaluation.result_files import DENSE, Results
from flap.storage import Cache

KEY = {"task": "a"}
FOUND = Measurement(
    {"a/acc": 0.5, "a/acc_stderr": 0.1},
    {"a/acc": [0.0, 1.0, 0.25, 0.1 + 0.2]},
    better={"a/acc": "higher"},
)


def never() -> Measurement:
    raise AssertionError("measured again")


def test_it_is_measured_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "run" / "evaluation.json")
    assert results.measured(KEY, lambda: FOUND) == FOUND
    assert results.measured({"task": "b"}, Measurement) == Measurement()
    assert Results(results.path).measured(KEY, never) == FOUND
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
    results.measured(KEY, lambda: FOUND)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    again = Measurement({"a/acc": 0.25}, {"a/acc": [0.5, 0.0]})
    assert results.measured(KEY, lambda: again) == again
    assert results.measured(KEY, never) == again


def test_documents_of_numbers_that_are_gone_are_dropped(tmp_path: Path) -> None:
    results = Results(tmp_path / "evaluation.json")
    results.measured(KEY, lambda: FOUND)
    results.path.unlink()
    results.measured({"task": "b"}, lambda: FOUND)
    assert len(json.loads(gzip.decompress((tmp_path / "documents.json.gz").read_bytes()))) == 1


def test_numbers_that_are_not_finite_are_null_for_other_readers_and_infinite_for_this_one(
    tmp_path: Path,
) -> None:
    measured = Measurement({"a/perplexity@8": math.inf, "a/kl@8": 0.5}, {"a/kl@8": [0.5, math.nan]})
    results = Results(tmp_path / "evaluation.json")
    assert results.measured(KEY | {"plan": 1}, lambda: measured) == measured
    read_back = Measurement(measured.numbers, {"a/kl@8": [0.5, math.inf]})
    assert results.measured(KEY | {"plan": 1}, never) == read_back
    assert Cache(tmp_path).get(DENSE, KEY, lambda: measured)[0] == measured
    assert Cache(tmp_path).get(DENSE, KEY, never) == (read_back, "hit")
    [entry] = json.loads(results.path.read_text(), parse_constant=pytest.fail).values()
    [values] = json.loads(
        gzip.decompress((tmp_path / "documents.json.gz").read_bytes()), parse_constant=pytest.fail
    ).values()
    assert (entry["numbers"], values) == (
        {"a/perplexity@8": None, "a/kl@8": 0.5},
        {"a/kl@8": [0.5, None]},
    )
