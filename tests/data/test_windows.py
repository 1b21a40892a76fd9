"""flap cuts calibration windows from several texts, in proportion to the weights of the texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.data import Part, Text, Windows
from flap.data.read_windows import Wanted, read_windows

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "ran", "a", "dog", "was", "there"]


def text_of(name: str, seed: int, words: int = 1500) -> Text:
    order = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed))
    return Text(name, " ".join(WORDS[i] for i in order), "")


@pytest.fixture
def mixture(tokenizer: PreTrainedTokenizerFast) -> Windows:
    parts = Part("a.txt", 1.0), Part("b.txt", 3.0)
    return Windows(parts, (text_of("a.txt", 1), text_of("b.txt", 2)), tokenizer, 40, 8, seed=0)


def found_in(tokens_NT: torch.Tensor, text: Text, tokenizer: PreTrainedTokenizerFast) -> int:
    """Count the windows whose sequence of tokens occurs in the tokens of this text."""
    text_ids = _joined(tokenizer(text.text).input_ids)
    return sum(_joined(window) in text_ids for window in tokens_NT.tolist())


def _joined(ids: list[int]) -> str:
    return "".join(f"{i}," for i in ids)


def test_texts_share_the_windows_by_weight(
    mixture: Windows, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens_NT = mixture.batch.tokens_NT
    text_N = mixture.text_N
    assert tokens_NT.shape == (40, 8)
    assert mixture.counts == [10, 30] == text_N.bincount().tolist()
    for p, text in enumerate(mixture.existing):
        assert found_in(tokens_NT[text_N == p], text, tokenizer) == mixture.counts[p]


def test_everything_that_windows_depend_on_is_in_their_key(mixture: Windows) -> None:
    other_text = (text_of("a.txt", 3), mixture.existing[1])
    others = [
        mixture,
        replace(mixture, seed=1),
        replace(mixture, num_samples=39),
        replace(mixture, seq_len=9),
        replace(mixture, parts=(Part("a.txt"), Part("b.txt"))),
        replace(mixture, texts=other_text),
        replace(mixture, parts=(Part("a.txt"), Part("self"))),
        replace(mixture, bos=True),
    ]
    assert len({json.dumps(windows.key) for windows in others}) == len(others)
    assert replace(mixture).key == mixture.key


def test_the_key_stays_when_the_model_has_written_a_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    parts = Part("a.txt"), Part("self")
    before = Windows(parts, (text_of("a.txt", 1), None), tokenizer, 40, 8, seed=0)
    assert before.to_write == [1]
    assert before.tokens_to_write(1) == (1 + 20) * 8
    after = before.written(1, text_of("self", 2))
    assert not after.to_write
    assert after.key == before.key
    assert after.batch.tokens_NT.shape == (40, 8)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("seq_len", [5, 8, 34])
def test_the_tokens_to_write_suffice(
    tokenizer: PreTrainedTokenizerFast, seq_len: int, bos: bool
) -> None:
    for num_samples in (7, 40):
        before = Windows((Part("self"),), (None,), tokenizer, num_samples, seq_len, seed=0, bos=bos)
        after = before.written(0, text_of("self", 2, before.tokens_to_write(0)))
        assert after.batch.tokens_NT.shape == (num_samples, seq_len)


def test_a_text_that_is_too_short_is_refused_with_the_number_of_its_windows(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    parts = Part("a.txt", 1.0), Part("b.txt", 3.0)
    texts = (text_of("a.txt", 1), text_of("b.txt", 2, words=100))
    windows = Windows(parts, texts, tokenizer, 40, 8, seed=0)
    message = (
        r"^calibration\.dataset=b\.txt: 12 windows of 8 tokens .* the 30 that are its .* or more "
        "prompts$"
    )
    with pytest.raises(ValueError, match=message):
        _ = windows.batch


def test_a_text_whose_weight_is_too_small_for_a_window_is_left_out(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The text `light` has too low a weight to get a window, but its documents count as read.

    The field `windows.read` lists the documents that count as read.
    """
    light = tmp_path / "light.txt"
    light.write_text("a cat")
    wanted = Wanted(8, 16, 0, "false")
    dataset = {"self": 1, str(light): 0.001}
    windows = read_windows("calibration", dataset, tokenizer, wanted, max_length=None)
    assert windows.parts == (Part("self", 1.0),)
    assert windows.counts == [8]
    assert f"calibration.dataset: 8 windows are too few for {light}, left out" in caplog.text
    assert windows.read == {"self": (), str(light): ("a cat",)}
