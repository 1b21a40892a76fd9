"""The bytes that tokens stand for add up to those of the text, also where a window cuts a character."""

import pytest
import torch

from flap.data import NO_TOKEN, text_bytes
from tests.helpers.tokenizers import KINDS, TRICKY


@pytest.mark.parametrize("kind", KINDS)
def test_they_add_up_to_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    in_front = kind.startswith("llama-spm")  # which puts a space there
    for text in TRICKY:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert text_bytes(torch.tensor(ids), tokenizer).sum() == len(text.encode()) + in_front


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_a_part_of_a_character_counts_what_it_has_of_it(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer("\N{GRINNING FACE}", add_special_tokens=False).input_ids
    assert text_bytes(torch.tensor([*ids, NO_TOKEN]), tokenizer).tolist() == [1, 1, 1, 1, 0]
