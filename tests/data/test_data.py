"""flap reads texts from local files, and cuts them into windows of tokens."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from flap.data import Part, Text, Windows, evaluation_windows, read_text, repetition


@pytest.fixture
def text(text_file: Path) -> Text:
    return read_text(str(text_file), "calibration", "calibration.dataset")


def rows(tokens_NT: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(window) for window in tokens_NT.tolist()]


def windows_of(
    text: Text, tokenizer: PreTrainedTokenizerFast, num_samples: int, seed: int = 0
) -> torch.Tensor:
    windows = Windows((Part(text.name),), (text,), tokenizer, num_samples, 32, seed)
    return windows.batch.tokens_NT


def test_windows_are_disjoint_and_seeded(text: Text, tokenizer: PreTrainedTokenizerFast) -> None:
    first = windows_of(text, tokenizer, 20)
    assert first.shape == (20, 32) and first.dtype == torch.int64
    assert torch.equal(first, windows_of(text, tokenizer, 20))
    assert set(rows(first)) != set(rows(windows_of(text, tokenizer, 20, seed=1)))
    ids = tokenizer(text.text).input_ids
    # The 3000 words of the text are enough for 93 windows of 32 tokens.
    cut = [tuple(ids[i : i + 32]) for i in range(0, len(ids) - 31, 32)]
    assert len(set(cut)) == 93
    assert len(set(rows(first))) == 20 and set(rows(first)) <= set(cut)
    everything = windows_of(text, tokenizer, 93)
    assert sorted(rows(everything)) == sorted(cut) and rows(everything) != cut
    with pytest.raises(
        ValueError, match=r"words\.txt: 93 windows of 32 .* lower calibration\.num_samples or"
    ):
        windows_of(text, tokenizer, 94)


def test_windows_of_one_text_are_drawn_as_ever(
    text: Text, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Windows are drawn by shuffling all windows of a text with a seed, and taking the first ones.

    Published results depend on the shuffled order, so it must not change.
    """
    ids = torch.tensor(tokenizer(text.text).input_ids)
    order = torch.randperm(93, generator=torch.Generator().manual_seed(3))
    assert torch.equal(
        windows_of(text, tokenizer, 50, seed=3), ids[: 93 * 32].reshape(93, 32)[order[:50]]
    )


@pytest.mark.parametrize(("max_tokens", "windows"), [(None, 93), (351, 10), (31, 1)])
def test_the_first_windows(
    max_tokens: int | None, windows: int, text: Text, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens_NT = evaluation_windows(text, tokenizer, 32, max_tokens, bos=False, field="f")
    assert tokens_NT.flatten().tolist() == tokenizer(text.text).input_ids[: 32 * windows]


def test_local_files_hold_one_text_whatever_their_format(tmp_path: Path) -> None:
    documents = ["the cat sat", "été, naïve\nline", "then it ran"]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": d, "id": i}) + "\n" for i, d in enumerate(documents))
    )
    Dataset.from_dict({"text": documents, "id": [1, 2, 3]}).to_parquet(str(tmp_path / "c.parquet"))
    texts = [
        read_text(str(tmp_path / name), "calibration", "f")
        for name in ("a.txt", "b.jsonl", "c.parquet")
    ]
    assert [text.name for text in texts] == ["a.txt", "b.jsonl", "c.parquet"]
    assert {text.text for text in texts} == {"\n\n".join(documents)}
    assert len({text.sha256 for text in texts}) == 1
    (tmp_path / "again.jsonl").write_text(texts[1].jsonl, encoding="utf-8")
    assert read_text(str(tmp_path / "again.jsonl"), "calibration", "f").documents == tuple(
        documents
    )
    assert texts[0].origin == str(tmp_path / "a.txt")


def test_lines_of_json_are_no_table(tmp_path: Path) -> None:
    """Each line of a JSON Lines file is parsed separately, so the types in a column may differ.

    A text may look like a date, and the file may begin with a byte order mark.
    """
    rows = [
        {"text": "2024-01-02", "id": 1},
        {"text": "it ran", "id": "a1"},
        {"text": "a\u2028b", "more": [None, {}]},
    ]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(f"\ufeff{lines}\n\n", encoding="utf-8")
    assert read_text(str(tmp_path / "a.jsonl"), "calibration", "f").documents == tuple(
        row["text"] for row in rows
    )
    (tmp_path / "a.txt").write_text("\ufeffit ran", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt"), "calibration", "f").text == "it ran"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            '{"text": "b"',
            r"cannot be read; expected a JSON object a line, in UTF-8 \(line 2: Expecting ','",
        ),
        (
            "[1]",
            r"cannot be read; expected a JSON object a line, in UTF-8 \(line 2: no JSON object\)",
        ),
        ('{"text": null}', "column 'text' has values that are not strings"),
        ('{"id": 1}', "column 'text' has values that are not strings"),
        (
            '{"text": "\\ud83d"}',
            r"cannot be read; .* \(line 2: 'utf-8' codec .*: surrogates not allowed\)",
        ),
    ],
)
def test_a_line_that_is_no_text_is_told(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"^f=.*a\.jsonl: {reason}"):
        read_text(str(tmp_path / "a.jsonl"), "calibration", "f")


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([7] * 12, 8 / 9),
        (list(range(9)), 0),
        ([1, 1], 0),
        ([], 0),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(
    tokens: list[int], share: float
) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_two_files_of_one_name_have_names_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = Part("a/asked.jsonl"), Part("b/asked.jsonl"), Part("self")
    windows = Windows(parts, (None, None, None), tokenizer, 3, 8, seed=0)
    assert list(map(windows.name, range(3))) == ["1-asked.jsonl", "2-asked.jsonl", "self"]
