"""If the windows of a batch are split or reordered, each window keeps its token mask.

The mask is true for counted tokens, such as the tokens of answers. Statistics are collected only at
counted tokens, and models are compared by their predictions of counted tokens.
"""

import pytest
import torch
from torch import Tensor

from flap.data import Batch
from flap.data.batch import FEW, judged

TOKENS = torch.tensor(
    [
        [5, 0, 7, 3],
        [1, 2, 0, 4],
    ]
)
MASK = torch.tensor(
    [
        [False, False, True, True],
        [True, False, False, True],
    ]
)


@pytest.fixture
def batch() -> Batch:
    return Batch(TOKENS, MASK)


def assert_windows(batch: Batch, tokens_NT: Tensor, mask_NT: Tensor) -> None:
    assert torch.equal(batch.tokens_NT, tokens_NT)
    assert torch.equal(batch.mask_NT, mask_NT)


def test_windows_keep_their_mask(batch: Batch) -> None:
    first, second = batch.split(1)
    assert_windows(first, TOKENS[:1], MASK[:1])
    assert_windows(second, TOKENS[1:], MASK[1:])
    assert len(first) == 1
    assert first.numel() == 4
    swapped = batch[torch.tensor([1, 0])]
    assert_windows(swapped, TOKENS.flip(0), MASK.flip(0))


def test_no_windows_are_split_into_no_batches(batch: Batch) -> None:
    assert batch[:0].split(2) == []


def test_a_position_counts_as_a_prediction_if_the_next_token_counts(batch: Batch) -> None:
    assert batch.mask_P is not None
    assert torch.equal(batch.mask_P, MASK.flatten())
    assert batch.predicted_P is not None
    predicted_NT = batch.predicted_P.view(2, 4)
    assert predicted_NT[0].tolist() == [False, True, True, True]
    assert predicted_NT[1].tolist() == [False, False, True, True]


def test_nothing_is_selected_where_all_tokens_count() -> None:
    everything = Batch.of(TOKENS)
    assert everything.mask_P is None
    assert everything.predicted_P is None


def test_a_text_with_few_tokens_of_answers_is_judged_by_all_its_tokens() -> None:
    """Models are compared on all tokens of a text that has fewer than FEW tokens of answers.

    On other texts, models are compared only on the tokens of answers. Here, text 0 has FEW of these
    tokens in its two windows, and text 1 has one fewer.
    """
    text_N = torch.tensor([0, 1, 0, 1])
    tokens_NT = torch.arange(8 * FEW).view(4, -1)
    mask_NT = torch.zeros_like(tokens_NT, dtype=torch.bool)
    mask_NT[:, 1 : FEW // 2 + 1] = True
    mask_NT[3, FEW // 2] = False

    judging = judged(Batch(tokens_NT, mask_NT), text_N)
    assert torch.equal(judging.tokens_NT, tokens_NT)
    assert torch.equal(judging.mask_NT[text_N == 0], mask_NT[text_N == 0])
    assert judging.mask_NT[text_N == 1].all()
