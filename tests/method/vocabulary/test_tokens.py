"""Trimmed tokenizers of all kinds still encode any text, and can be saved and reloaded."""

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

# The trimmed tokenizers keep all tokens of this text. The other texts in TEXT also contain tokens
# that are removed.
COUNTED = TEXT[0]
PIECES = [*TEXT, *TRICKY, *COUNTED.split(), " ", "\n", "👩‍🚀", "\u200b"]
ANY = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
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
    ids = torch.tensor(old(COUNTED).input_ids)
    counts_V = ids.bincount(minlength=len(old)).double()
    ranking = Ranking.of(tokens, counts_V, torch.zeros_like(counts_V))
    kept = ranking.names[: ranking.covering(1.0)]
    assert len(tokens.stay) < len(kept) < len(old)
    trimmed = Trimmed.of(old, KeptTokens(tokens, kept, 1.0), len(old))
    return Both(old, trimmed.tokenizer, set(kept), trimmed.rows_K.tolist())


def there_and_back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)


def test_tokens_that_a_config_names_stay(both: Both) -> None:
    removed = next(token for token in both.old.get_vocab() if token not in both.kept)
    i = both.old.convert_tokens_to_ids(removed)
    tokens = Tokens.of(both.old, len(both.old), {i, 10**6})
    assert removed in tokens.stay
    # A token for which the embedding has no row does not stay.
    too_few_rows = Tokens.of(both.old, i, {i})
    assert removed not in too_few_rows.stay


def test_ids_have_no_gaps_and_keep_their_order(both: Both) -> None:
    ids = both.new.get_vocab()
    assert set(ids) == both.kept
    assert len(both.new) == len(both.kept)
    in_order = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in in_order] == list(range(len(both.kept)))
    old_ids = both.old.get_vocab()
    assert [old_ids[token] for token in in_order] == both.old_ids


@settings(max_examples=60)
@given(text=ANY)
def test_any_text_goes_there_and_back(both: Both, text: str) -> None:
    assert there_and_back(both.new, text) == there_and_back(both.old, text)


@settings(max_examples=60)
@given(text=ANY)
def test_a_text_of_tokens_that_stay_has_the_same_tokens(both: Both, text: str) -> None:
    before = pieces(both.old, text)
    if set(before) <= both.kept:
        assert pieces(both.new, text) == before


def test_special_tokens_have_their_new_ids_everywhere(both: Both) -> None:
    ids = both.new.get_vocab()
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = getattr(both.new, name)
        assert token == getattr(both.old, name)
        if token is not None:
            assert getattr(both.new, f"{name}_id") == ids[token]
    with_special = both.new(COUNTED).input_ids
    assert both.new.convert_ids_to_tokens(with_special) == pieces(both.old, COUNTED)


def test_it_is_read_as_it_was_saved(both: Both, tmp_path: Path) -> None:
    both.new.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        assert again(text).input_ids == both.new(text).input_ids
    assert again.get_vocab() == both.new.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_fewest_tokens_spaces_still_go_there_and_back(kind: str) -> None:
    old = KINDS[kind]()
    tokens = Tokens.of(old, len(old))
    fewest = KeptTokens(tokens, list(tokens.stay), 0.0)
    new = Trimmed.of(old, fewest, len(old)).tokenizer
    text = "it has  spaces"
    assert there_and_back(new, text) == there_and_back(old, text)


def test_of_two_ways_to_a_token_the_one_that_is_used_stays() -> None:
    """LLaMA's tokenizer has merges for several ways to form a token from its parts.

    The tokenizer makes "abc" from "a" and "bc", because the merge that forms "bc" comes first in
    the list. So "abc" needs "bc", and does not need "ab".
    """
    merges = [
        ["b", "c"],
        ["a", "b"],
        ["ab", "c"],
        ["a", "bc"],
    ]
    spec = {"model": {"merges": merges, "byte_fallback": True}}
    ids = {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5}
    tokens = BPE(spec, ids, frozenset())
    assert set(tokens.needed("abc")) == {"a", "b", "c", "bc", "abc"}
