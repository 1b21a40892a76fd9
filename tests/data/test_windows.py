"""Calibration windows of several texts and lengths."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.data import Part, Text, Windows

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "ran", "a", "dog", "was", "there"]


def text_of(name: str, seed: int, words: int = 1500) -> Text:
    order = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed))
    return Text(name, " ".join(WORDS[i] for i in order), "")


@pytest.fixture
def mixture(tokenizer: PreTrainedTokenizerFast) -> Windows:
    parts = Part("a.txt", 1.0), Part("b.txt", 3.0)
    return Windows(parts, (text_of("a.txt", 1), text_of("b.txt", 2)), tokenizer, 40, (8, 32), seed=0)


def found_in(tokens_NT: torch.Tensor, text: Text, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many of the windows are in this text."""
    ids = ",".join(map(str, tokenizer(text.text).input_ids)) + ","
    return sum(",".join(map(str, window)) + "," in ids for window in tokens_NT.tolist())


def test_texts_by_weight_and_lengths_by_equal_shares(mixture: Windows, tokenizer: PreTrainedTokenizerFast) -> None:
    short, long = mixture.by_length
    assert short.shape == (20, 8) and long.shape == (5, 32)  # 160 tokens each
    assert [found_in(long, text, tokenizer) for text in mixture.existing] == [1, 4]
    assert mixture.counts(8) == [5, 15] and [len(windows[8]) for windows in mixture.drawn] == [5, 15]
    assert found_in(short, mixture.existing[1], tokenizer) >= 15
    for tokens_NT, text_N in zip(mixture.by_length, mixture.text_by_length, strict=True):
        assert all(found_in(tokens_NT[text_N == p], text, tokenizer) == (text_N == p).sum()
                   for p, text in enumerate(mixture.existing))  # fmt: skip


def test_the_key_tells_apart_all_that_windows_depend_on(mixture: Windows, tokenizer: PreTrainedTokenizerFast) -> None:
    other = partial(replace, mixture)
    others = [
        mixture, other(seed=1), other(num_samples=39), other(lengths=(8,)), other(lengths=(32, 8)),
        other(parts=(Part("a.txt"), Part("b.txt"))), other(texts=(text_of("a.txt", 3), mixture.existing[1])),
        other(parts=(Part("a.txt"), Part("self"))), other(bos=True),
    ]  # fmt: skip
    assert len({json.dumps(one.key) for one in others}) == len(others)
    assert other().key == mixture.key


def test_a_text_that_the_model_writes_is_awaited(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = Part("a.txt"), Part("self")
    before = Windows(parts, (text_of("a.txt", 1), None), tokenizer, 40, (8, 32), seed=0)
    assert before.to_write == [1] and before.tokens_to_write(1) == (1 + 3 + 2) * 32
    after = before.written(1, text_of("self", 2))
    assert not after.to_write and after.key == before.key
    assert [tuple(windows.shape) for windows in after.by_length] == [(20, 8), (5, 32)]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("lengths", [(8, 32), (8, 30), (12, 8), (5, 13, 34), (20,)])
def test_the_tokens_to_write_suffice(tokenizer: PreTrainedTokenizerFast, lengths: tuple[int, ...], bos: bool) -> None:
    for num_samples in (len(lengths) * 7, 40):
        before = Windows((Part("self"),), (None,), tokenizer, num_samples, lengths, seed=0, bos=bos)
        after = before.written(0, text_of("self", 2, before.tokens_to_write(0)))
        shapes = [tuple(windows.shape) for windows in after.by_length]
        assert shapes == [(before.counts(seq_len)[0], seq_len) for seq_len in lengths]


def test_a_part_that_is_too_short_says_its_windows_and_what_helps(tokenizer: PreTrainedTokenizerFast) -> None:
    text = Text.joined("short", ["the old cat"] * 100, "")
    without_packing = Windows((Part("short", packing=False),), (text,), tokenizer, 4, (16,), seed=0)
    with pytest.raises(ValueError, match=r"0 windows of 16 .* its weight, or take packing: true, or a longer text$"):
        _ = without_packing.drawn
    parts = Part("a.txt", 1.0), Part("b.txt", 3.0)
    windows = Windows(parts, (text_of("a.txt", 1), text_of("b.txt", 2, 100)), tokenizer, 40, (8,), seed=0)
    with pytest.raises(
        ValueError, match=r"^calibration\.dataset=b\.txt: 12 windows of 8 tokens .* the 30 that are its"
    ):
        _ = windows.by_length
