"""Windows of several texts are mixed in proportion to the weights of the texts.

If the tokenizer was changed after the windows were cut, the texts are tokenized again.
"""

from copy import deepcopy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from flap.data import Pool, Text, split_windows
from flap.data.window_pool import apportioned, mixed

REPEATABLE = settings(deadline=None, derandomize=True, database=None)


def numbered(part: int, count: int) -> torch.Tensor:
    return torch.tensor([[part, i] for i in range(count)])


TOTALS = st.integers(0, 500)
WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)
COUNTS = st.lists(st.integers(1, 80), min_size=1, max_size=4)


@REPEATABLE
@given(TOTALS, WEIGHTS)
def test_shares_have_the_sum_and_are_off_by_less_than_one(total: int, weights: list[float]) -> None:
    shares = apportioned(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        exact = total * weight / sum(weights)
        assert abs(share - exact) < 1


def assert_in_proportion(part_N: torch.Tensor, counts: list[int]) -> None:
    """Check, for every n, that the first n windows come from each text in proportion to `counts`.

    The number of windows of a text may differ from its exact share by less than two.
    """
    for part, count in enumerate(counts):
        for n in range(1, len(part_N) + 1):
            windows = int((part_N[:n] == part).sum())
            exact = n * count / sum(counts)
            assert abs(windows - exact) < 2


@REPEATABLE
@given(COUNTS)
def test_all_windows_are_mixed_each_part_in_its_order_and_in_proportion(counts: list[int]) -> None:
    parts = [numbered(p, count) for p, count in enumerate(counts)]
    together = mixed(parts)
    for p, part in enumerate(parts):
        of_part_N = together[:, 0] == p
        assert torch.equal(together[of_part_N], part)
    fitting, held_out = split_windows(together)
    assert_in_proportion(fitting[:, 0], counts)
    assert_in_proportion(held_out[:, 0], counts)


def test_a_tokenizer_that_was_changed_makes_other_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = [f"w{i}" for i in range(40)]
    text = Text("t", " ".join(words), "")
    changing = deepcopy(tokenizer)
    before = Pool(text, changing, bos=False).tokens_S.tolist()
    changing.add_tokens(["w1 w2"])
    after = Pool(text, changing, bos=False).tokens_S.tolist()
    assert after == changing(text.text).input_ids != before
    assert Pool(text, tokenizer, bos=False).tokens_S.tolist() == before
