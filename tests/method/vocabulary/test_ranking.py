"""The ranking decides which tokens stay in a trimmed vocabulary."""

import pytest
import torch

from flap.method.vocabulary import Ranking, Tokens
from flap.method.vocabulary.tokens import BPE
from tests.helpers.tokenizers import TEXT
from tests.method.vocabulary.kinds import KINDS

NAMES = ["a", "b", "c", "bc", "ab", "abc"]
# The tokenizer applies the first possible merge of this list, so it makes "abc" from "a" and "bc".
MERGES = [
    ["b", "c"],
    ["a", "b"],
    ["ab", "c"],
    ["a", "bc"],
]


def bpe(names: list[str], merges: list[list[str]], special: frozenset[int] = frozenset()) -> BPE:
    spec = {
        "model": {"merges": merges, "byte_fallback": True},
        "added_tokens": [],
    }
    ids = {name: i for i, name in enumerate(names)}
    return BPE(spec, ids, special)


def ranking_of(counts: dict[str, float], *special: str) -> Ranking:
    """Return the ranking of the tokens NAMES by their counts in a text.

    The model's probability is 0 for every token, so only counts decide.

    special: the names of special tokens.
    """
    special_ids = frozenset(NAMES.index(name) for name in special)
    counts_V = torch.tensor([counts.get(name, 0.0) for name in NAMES]).double()
    expected_V = torch.zeros_like(counts_V)
    return Ranking.of(bpe(NAMES, MERGES, special_ids), counts_V, expected_V)


def test_counts_and_expectations_add_up() -> None:
    """Tokens are ranked by a sum: their count plus their probability times the text's length.

    The text has four tokens, so the sums are 3 + 4 · 0.1 = 3.4 for "a", 1.6 for "b" and 1.8 for
    "c".
    """
    counts_V = torch.tensor([3.0, 0.0, 1.0])
    expected_V = torch.tensor([0.1, 0.4, 0.2])
    ranking = Ranking.of(bpe(["a", "b", "c"], []), counts_V, expected_V)
    assert ranking.names == ["a", "c", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_comes_after_its_parts(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = Tokens.of(tokenizer, len(tokenizer))
    ids = torch.tensor(tokenizer(TEXT[0]).input_ids)
    counts_V = ids.bincount(minlength=len(tokenizer)).double()
    ranking = Ranking.of(tokens, counts_V, torch.zeros_like(counts_V))

    ranks = {name: rank for rank, name in enumerate(ranking.names)}
    assert ranks.keys() == tokens.ids.keys()
    first_names = ranking.names[: len(tokens.stay)]
    assert set(first_names) == tokens.stay
    for name, rank in ranks.items():
        assert max(ranks[part] for part in tokens.needed(name)) <= rank
    for name, count in zip(ranking.names, ranking.counts_R.tolist(), strict=True):
        assert count == counts_V[tokens.ids[name]]


def test_the_most_frequent_tokens_come_first() -> None:
    counts = {"ab": 3, "c": 4}
    assert ranking_of(counts).names == ["c", "a", "b", "ab", "bc", "abc"]
    with_special = ranking_of(counts, "abc")
    assert with_special.names == ["abc", "c", "a", "b", "ab", "bc"]


@pytest.mark.parametrize(
    ("share", "number"),
    [
        (0.1, 1),
        (0.5, 1),
        (0.51, 4),
        (1.0, 4),
    ],
)
def test_the_first_tokens_cover_a_share_of_the_counted_ones(share: float, number: int) -> None:
    counts = {"c": 5, "ab": 5}
    assert ranking_of(counts).covering(share) == number
    with_special = ranking_of(counts, "bc", "abc")
    assert with_special.covering(share) == number + 2
