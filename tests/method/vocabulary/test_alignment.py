"""`Alignment` compares the tokens into which two tokenizers split the same text.

It finds the positions in the text where both lists of tokens have a boundary, and where the token
after this boundary is the same.
"""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from flap.method.vocabulary import KeptTokens, Ranking, Tokens, Trimmed
from flap.method.vocabulary.alignment import NOWHERE, Alignment
from tests.helpers.tokenizers import TEXT, TRICKY
from tests.method.vocabulary.kinds import KINDS

SOME = ["smollm", "qwen2", "gemma", "llama-spm", "unigram"]
CHARACTERS = "emoji 😀 and 中文字 and ünïcödé"


def alignment(kind: str, without_row: int = 0) -> Alignment:
    """Return the alignment of a tokenizer with a copy that has lost most of its tokens.

    The copy has the tokens that flap never removes, and twelve more.

    without_row: the number of tokens, at the end of the vocabulary, that have no embedding row.
    """
    tokenizer = KINDS[kind]()
    rows = len(tokenizer) - without_row
    tokens = Tokens.of(tokenizer, rows)
    ids = torch.tensor(tokenizer(TEXT[0]).input_ids)
    counts_V = ids.bincount(minlength=rows).double()
    names = Ranking.of(tokens, counts_V).names[: len(tokens.stay) + 12]
    kept = KeptTokens(tokens, names, 1.0)
    return Alignment.of(tokenizer, Trimmed.of(tokenizer, kept, rows), rows)


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def beginnings(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[bytes]:
    """For each token of a text, return the bytes of the text up to the end of this token."""
    read = b""
    found = []
    for name in tokenizer.convert_ids_to_tokens(ids):
        if name.startswith("<0x"):
            read += bytes.fromhex(name[3:5])
        else:
            read += name.encode()
        found.append(read)
    return found


@pytest.mark.parametrize("kind", SOME)
def test_places_have_the_same_text_before_them_and_the_same_token_after_them(kind: str) -> None:
    both = alignment(kind)
    places = 0
    for text in TRICKY:
        new = encoded(both.after, text)
        old = encoded(both.before, text)
        if kind == "unigram" and both.after.unk_token_id in new:
            continue  # the unknown token cannot be decoded to the characters of the text
        found = both.align(torch.tensor(new))
        assert found.old_S.tolist() == old, text

        old_beginnings = beginnings(both.before, old)[:-1]
        expected = [NOWHERE] * len(new)
        for t, read in enumerate(beginnings(both.after, new)[:-1]):
            if read not in old_beginnings:
                continue
            s = old_beginnings.index(read)
            following = old[s + 1]
            if both.first_V[following] == new[t + 1]:
                expected[t] = s
        assert found.position_T.tolist() == expected, text
        places += sum(s != NOWHERE for s in expected)
    assert places > 20


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_a_window_may_begin_and_end_inside_a_character(kind: str) -> None:
    both = alignment(kind)
    new = encoded(both.after, CHARACTERS)
    number = len(new)
    windows = [new[start:] for start in range(number - 3)]
    windows += [new[:end] for end in range(3, number)]
    for window in windows:
        found = both.align(torch.tensor(window))
        text = both.before.decode(found.old_S)
        assert text in CHARACTERS
        positions = [s for s in found.position_T.tolist() if s != NOWHERE]
        assert positions == sorted(set(positions))
    whole = both.align(torch.tensor(new)).position_T
    assert 4 <= (whole == NOWHERE).sum() < number / 2


def test_special_tokens_are_read_as_such() -> None:
    both = alignment("gemma")
    begins = both.after.bos_token_id
    new = [begins, *encoded(both.after, "the<|stop|>the")]
    found = both.align(torch.tensor(new))
    stop = both.before.convert_tokens_to_ids("<|stop|>")
    assert found.old_S[0] == both.before.bos_token_id
    assert stop in found.old_S
    assert found.position_T[0] == 0


@pytest.mark.parametrize("kind", SOME)
def test_an_empty_text_has_no_place(kind: str) -> None:
    found = alignment(kind).align(torch.empty(0, dtype=torch.long))
    assert len(found.position_T) == 0
    assert len(found.old_S) == 1  # one token is added, because a model cannot read an empty text


def test_tokens_that_the_model_does_not_know_are_left_out() -> None:
    both = alignment("gemma", without_row=1)
    assert both.before("<|stop|>", add_special_tokens=False).input_ids == [len(both.first_V)]
    new = torch.tensor(encoded(both.after, "the<|stop|>the"))
    found = both.align(new)
    the = encoded(both.before, "the")
    assert found.old_S.tolist() == [*the, *the]
    assert (found.position_T != NOWHERE).any()


def test_a_window_inside_a_character_has_no_place() -> None:
    both = alignment("gemma")
    parts = both.after.convert_tokens_to_ids(["<0x98>", "<0x80>"])
    assert both.align(torch.tensor(parts)).position_T.tolist() == [NOWHERE, NOWHERE]


@pytest.mark.parametrize("kind", SOME)
def test_the_probability_of_a_removed_token_goes_to_the_first_part_of_it(kind: str) -> None:
    both = alignment(kind)
    rows = len(both.first_V)
    kept = len(both.length_K)
    p_PV = torch.rand(3, rows, generator=torch.Generator().manual_seed(0)).softmax(-1)
    p_PK = both.marginal(p_PV)
    torch.testing.assert_close(p_PK.sum(-1), torch.ones(3))

    staying = both.after.get_vocab()
    expected_PK = torch.zeros(3, kept)
    for name, i in both.before.get_vocab().items():
        k = staying.get(name)
        if k is None:
            k = both.after.backend_tokenizer.model.tokenize(name)[0].id
        expected_PK[:, k] += p_PV[:, i]
    torch.testing.assert_close(p_PK, expected_PK)


def test_a_token_that_stays_begins_with_itself() -> None:
    both = alignment("qwen2")
    names = both.after.convert_ids_to_tokens(range(len(both.length_K)))
    old = both.before.convert_tokens_to_ids(names)
    assert both.first_V[old].tolist() == list(range(len(names)))
