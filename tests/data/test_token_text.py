"""flap can compute the text and the number of bytes of any sequence of tokens.

The bytes of all tokens add up to the bytes of the text. If windows are converted from one tokenizer
to another, they keep their text. Only characters that are cut by the edge of a window are left out.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flap.data import retokenised, text_bytes
from tests.helpers.tokenizers import KINDS, TEXT, TRICKY
from tests.method.vocabulary.kinds import unigram


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_add_up_to_those_of_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    in_front = kind.startswith("llama-spm")  # these tokenizers add a space before the text
    for text in TRICKY:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert text_bytes(torch.tensor(ids), tokenizer).sum() == len(text.encode()) + in_front


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_a_part_of_a_character_has_a_part_of_its_bytes(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer("\N{GRINNING FACE}", add_special_tokens=False).input_ids
    assert text_bytes(torch.tensor(ids), tokenizer).tolist() == [1, 1, 1, 1]


class InPython(PreTrainedTokenizer):
    """A tokenizer written in Python ("slow"), like Kimi K2's, that gives the tokens of `fast`."""

    def __init__(self, fast: PreTrainedTokenizerBase) -> None:
        self.fast = fast
        super().__init__(eos_token=fast.eos_token)

    @property
    def vocab_size(self) -> int:
        return self.fast.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return self.fast.get_vocab()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return self.fast.tokenize(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.fast.convert_tokens_to_ids(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.fast.convert_ids_to_tokens(index)


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_a_tokenizer_in_python_has_the_bytes_of_a_fast_one(kind: str) -> None:
    fast = KINDS[kind]()
    text = "The old tree, 漢字 50 € 😀"
    ids = fast(text, add_special_tokens=False).input_ids
    assert InPython(fast)(text, add_special_tokens=False).input_ids == ids
    assert text_bytes(torch.tensor(ids), InPython(fast)).sum() == len(text.encode())


def test_the_ids_of_a_tokenizer_may_have_a_gap() -> None:
    backend = Tokenizer(models.WordLevel({"old": 0, "tree": 7}, unk_token="old"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert text_bytes(torch.tensor([0, 7]), tokenizer).tolist() == [3, 4]


def mistral() -> LlamaTokenizer:
    """Return a tokenizer that adds a space before a text, and encodes most characters as bytes."""
    pieces = ["▁", *"slowycat,", "ow", "ly", "▁c", "at", "▁cat"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    merges = [("o", "w"), ("l", "y"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    return LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


ASCII = " ".join(text for text in TRICKY if text.isascii())
SAME = [
    (mistral, "slowly, cat\n cat\n\nslow  cat, slowly cats"),
    (partial(unigram, byte_fallback=False), " ".join(TEXT)),
    (KINDS["llama-spm"], ASCII),
    (KINDS["llama-spm-legacy"], ASCII),
    (KINDS["llama-spm-file"], ASCII),
]


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize(("make", "text"), SAME)
def test_windows_keep_their_tokens_with_a_copy_of_the_tokenizer_wherever_they_begin(
    make: Callable[[], PreTrainedTokenizerBase], text: str, length: int
) -> None:
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    windows_NT = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    found = retokenised(windows_NT, tokenizer, deepcopy(tokenizer), bos=False)
    assert torch.equal(found.tokens_NT, windows_NT)
    assert found.mask_NT.all()


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [(1, 12, "本é😀"), (2, 11, "本é"), (0, 4, "日"), (3, 9, "本é"), (0, 12, "日本é😀")],
)
def test_only_the_character_that_an_edge_cuts_is_left_out(first: int, last: int, text: str) -> None:
    tokenizer = mistral()
    # In UTF-8, the four characters have 3, 3, 2 and 4 bytes.
    ids = tokenizer("日本é😀", add_special_tokens=False).input_ids[1:]
    window_1T = torch.tensor([ids[first:last]])
    [found] = retokenised(window_1T, tokenizer, tokenizer, bos=False).tokens_NT.tolist()
    assert tokenizer.decode(found) == text
