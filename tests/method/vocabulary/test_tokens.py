"""Tokenizers of each kind without some of their tokens: what they make of any text, and how they are read again."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flap.method.vocabulary import KeptTokens, Ranking, Tokens, Trimmed
from flap.method.vocabulary.tokens import BPE
from tests.helpers.tokenizers import TEXT, TRICKY
from tests.method.vocabulary.kinds import KINDS, pieces

COUNTED = TEXT[0]  # the others have tokens that are removed
ANY = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(
        st.sampled_from([*TEXT, *TRICKY, *COUNTED.split(), " ", "\n", "👩‍🚀", "\u200b"]), max_size=4
    ).map("".join),
)


@dataclass(frozen=True)
class Both:
    old: PreTrainedTokenizerBase
    new: PreTrainedTokenizerBase
    kept: set[str]
    old_ids: list[int]


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest) -> Both:
    old = KINDS[request.param]()
    tokens = Tokens.of(old, len(old))
    counts_V = torch.tensor(old(COUNTED).input_ids).bincount(minlength=len(old)).double()
    ranking = Ranking.of(tokens, counts_V, torch.zeros_like(counts_V))
    kept = ranking.names[: ranking.covering(1.0)]
    assert len(tokens.stay) < len(kept) < len(old)
    trimmed = Trimmed.of(old, KeptTokens(tokens, kept, 1.0), len(old))
    return Both(old, trimmed.tokenizer, set(kept), trimmed.rows_K.tolist())


def test_tokens_that_a_config_names_stay(both: Both) -> None:
    left = next(token for token in both.old.get_vocab() if token not in both.kept)
    i = both.old.convert_tokens_to_ids(left)
    assert left in Tokens.of(both.old, len(both.old), {i, 10**6}).stay
    assert left not in Tokens.of(both.old, i, {i}).stay  # which has no row


def test_ids_are_dense_and_in_their_old_order(both: Both) -> None:
    names = both.new.get_vocab()
    assert set(names) == both.kept and len(both.kept) == len(both.new)
    assert sorted(names.values()) == list(range(len(both.kept)))
    old = both.old.get_vocab()
    assert [old[token] for token in sorted(names, key=names.__getitem__)] == both.old_ids


@settings(max_examples=60)
@given(text=ANY)
def test_any_text_goes_there_and_back(both: Both, text: str) -> None:
    there_and_back = [
        one.decode(one(text, add_special_tokens=False).input_ids) for one in (both.old, both.new)
    ]
    assert there_and_back[0] == there_and_back[1]


@settings(max_examples=60)
@given(text=ANY)
def test_a_text_of_tokens_that_stay_has_the_same_tokens(both: Both, text: str) -> None:
    before = pieces(both.old, text)
    if set(before) <= both.kept:
        assert pieces(both.new, text) == before


def test_special_tokens_have_their_new_ids_everywhere(both: Both) -> None:
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(both.new, name) == getattr(both.old, name)
        if (token := getattr(both.new, name)) is not None:
            assert getattr(both.new, f"{name}_id") == both.new.get_vocab()[token]
    with_special = both.new(COUNTED).input_ids
    assert both.new.convert_ids_to_tokens(with_special) == pieces(both.old, COUNTED)


def test_it_is_read_again_as_it_was(both: Both, tmp_path: Path) -> None:
    both.new.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        assert again(text).input_ids == both.new(text).input_ids
    assert again.get_vocab() == both.new.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_text_without_spaces_others_still_go_there_and_back(kind: str) -> None:
    old = KINDS[kind]()
    tokens = Tokens.of(old, len(old))
    new = Trimmed.of(old, KeptTokens(tokens, list(tokens.stay), 0.0), len(old)).tokenizer
    texts = [
        one.decode(one("it has  spaces", add_special_tokens=False).input_ids) for one in (old, new)
    ]
    assert texts[0] == texts[1]


def test_of_two_ways_to_a_token_the_one_that_is_taken_stays() -> None:
    """Llama's merges are all divisions of a token; of "abc" the tokenizer takes (a, bc), as bc has the lower rank."""
    spec = {
        "model": {
            "merges": [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]],
            "byte_fallback": True,
        }
    }
    tokens = BPE(
        spec, {token: i for i, token in enumerate(["a", "b", "c", "bc", "ab", "abc"])}, frozenset()
    )
    assert set(tokens.needed("abc")) == {"a", "b", "c", "bc", "abc"}
