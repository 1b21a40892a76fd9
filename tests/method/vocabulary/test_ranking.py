"""The order in which tokens stay."""

import pytest
import torch

from flap.method.vocabulary import Ranking, Tokens
from flap.method.vocabulary.tokens import BPE
from tests.helpers.tokenizers import TEXT
from tests.method.vocabulary.kinds import KINDS

NAMES = ["a", "b", "c", "bc", "ab", "abc"]
MERGES = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]  # so "abc" is made of "a" and "bc"


def bpe(names: list[str], merges: list[list[str]], special: frozenset[int] = frozenset()) -> BPE:
    spec = {"model": {"merges": merges, "byte_fallback": True}, "added_tokens": []}
    return BPE(spec, {name: i for i, name in enumerate(names)}, special)


def toy(counts: dict[str, float], special: frozenset[int] = frozenset()) -> Ranking:
    """The ranking of NAMES by counts alone."""
    counts_V = torch.tensor([counts.get(name, 0.0) for name in NAMES], dtype=torch.float64)
    return Ranking.of(bpe(NAMES, MERGES, special), counts_V, torch.zeros_like(counts_V))


def test_counts_and_expectations_add_up() -> None:
    """Of four counted tokens: a 3.4, c 1.8, b 1.6."""
    tokens = bpe(["a", "b", "c"], [])
    ranking = Ranking.of(tokens, torch.tensor([3.0, 0.0, 1.0]), torch.tensor([0.1, 0.4, 0.2]))
    assert ranking.names == ["a", "c", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_comes_after_its_parts(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = Tokens.of(tokenizer, len(tokenizer))
    ids = torch.tensor(tokenizer(TEXT[0]).input_ids)
    counts_V = ids.bincount(minlength=len(tokenizer)).double()
    ranking = Ranking.of(tokens, counts_V, torch.zeros_like(counts_V))

    rank = {name: r for r, name in enumerate(ranking.names)}
    assert rank.keys() == tokens.ids.keys()
    assert set(ranking.names[: len(tokens.stay)]) == tokens.stay
    for name in rank:
        assert all(rank[part] <= rank[name] for part in tokens.needed(name))
    assert ranking.counts_R.tolist() == [counts_V[tokens.ids[name]] for name in ranking.names]


def test_the_most_frequent_tokens_come_first() -> None:
    counts = {"ab": 3, "c": 4}
    assert toy(counts).names == ["c", "a", "b", "ab", "bc", "abc"]
    special = frozenset([NAMES.index("abc")])
    assert toy(counts, special).names == ["abc", "c", "a", "b", "ab", "bc"]


@pytest.mark.parametrize(("share", "number"), [(0.1, 1), (0.5, 1), (0.51, 4), (1.0, 4)])
def test_the_first_tokens_cover_a_share_of_the_counted_ones(share: float, number: int) -> None:
    counts = {"c": 5, "ab": 5}
    assert toy(counts).covering(share) == number
    assert toy(counts, special=frozenset([3, 5])).covering(share) == number + 2
