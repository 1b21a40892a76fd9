"""The order in which tokens stay."""

import pytest
import torch

from flap.method.vocabulary import Ranking, Tokens
from flap.method.vocabulary.tokens import BPE
from tests.helpers.tokenizers import TEXT
from tests.method.vocabulary.kinds import KINDS

NONE = torch.zeros(6, dtype=torch.float64)


def toy(counts: dict[str, float], special: frozenset[int] = frozenset()) -> Ranking:
    """ "abc" is a and bc."""
    merges = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]
    spec = {"model": {"merges": merges, "byte_fallback": True}, "added_tokens": []}
    names = ["a", "b", "c", "bc", "ab", "abc"]
    counts_V = torch.tensor([counts.get(name, 0.0) for name in names], dtype=torch.float64)
    return Ranking.of(
        BPE(spec, {token: i for i, token in enumerate(names)}, special), counts_V, NONE
    )


def test_counts_and_expectations_add_up() -> None:
    """Of four counted tokens: a 3.4, c 1.8, b 1.6."""
    spec = {"model": {"merges": [], "byte_fallback": True}, "added_tokens": []}
    tokens = BPE(spec, {"a": 0, "b": 1, "c": 2}, frozenset())
    ranking = Ranking.of(tokens, torch.tensor([3.0, 0.0, 1.0]), torch.tensor([0.1, 0.4, 0.2]))
    assert ranking.names == ["a", "c", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_after_what_it_is_made_of(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = Tokens.of(tokenizer, len(tokenizer))
    counts_V = (
        torch.tensor(tokenizer(TEXT[0]).input_ids).bincount(minlength=len(tokenizer)).double()
    )
    ranking = Ranking.of(tokens, counts_V, torch.zeros_like(counts_V))
    place = {name: r for r, name in enumerate(ranking.names)}
    assert (
        place.keys() == tokens.ids.keys() and set(ranking.names[: len(tokens.stay)]) == tokens.stay
    )
    assert all(place[part] <= place[name] for name in place for part in tokens.needed(name))
    assert ranking.counts_R.tolist() == [counts_V[tokens.ids[name]] for name in ranking.names]


def test_what_matters_most_stays_first() -> None:
    assert toy({"ab": 3, "c": 4}).names == ["c", "a", "b", "ab", "bc", "abc"]
    assert toy({"ab": 3, "c": 4}, special=frozenset([5])).names == [
        "abc",
        "c",
        "a",
        "b",
        "ab",
        "bc",
    ]


@pytest.mark.parametrize(("share", "number"), [(0.1, 1), (0.5, 1), (0.51, 4), (1.0, 4)])
def test_the_first_ones_cover_a_share_of_what_was_counted(share: float, number: int) -> None:
    assert toy({"c": 5, "ab": 5}).covering(share) == number
    assert toy({"c": 5, "ab": 5}, special=frozenset([3, 5])).covering(share) == number + 2
