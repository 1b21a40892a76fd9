"""A token mask stays with its windows, says which predictions count, and which tokens judge."""

import torch

from flap.data import Batch
from flap.data.batch import FEW, judged

TOKENS = torch.tensor([[5, 0, 7, 3], [1, 2, 0, 4]])
MASK = torch.tensor([[False, False, True, True], [True, False, False, True]])


def test_windows_keep_their_mask() -> None:
    batch = Batch(TOKENS, MASK)
    [first, second] = batch.split(1)
    assert torch.equal(second.tokens_NT, TOKENS[1:])
    assert torch.equal(second.mask_NT, MASK[1:])
    swapped = batch[torch.tensor([1, 0])]
    assert torch.equal(swapped.tokens_NT, TOKENS.flip(0))
    assert torch.equal(swapped.mask_NT, MASK.flip(0))
    assert (len(first), first.numel()) == (1, 4)
    assert Batch(TOKENS[:0], MASK[:0]).split(2) == []


def test_a_position_counts_as_a_prediction_if_the_next_token_counts() -> None:
    batch = Batch(TOKENS, MASK)
    assert batch.mask_P is not None
    assert batch.predicted_P is not None
    assert batch.mask_P.tolist() == MASK.flatten().tolist()
    assert batch.predicted_P.tolist() == [False, True, True, True, False, False, True, True]


def test_nothing_is_selected_where_all_tokens_count() -> None:
    assert Batch.of(TOKENS).mask_P is None
    assert Batch.of(TOKENS).predicted_P is None


def test_a_text_with_few_tokens_of_answers_is_judged_by_all_its_tokens() -> None:
    tokens_NT = torch.arange(8 * FEW).view(4, -1)
    position_T = torch.arange(2 * FEW)
    # Text 0 has FEW tokens of answers in its two windows, text 1 has FEW - 1.
    answers_N1 = torch.tensor([FEW // 2, FEW // 2, FEW // 2, FEW // 2 - 1])[:, None]
    mask_NT = (position_T > 0) & (position_T <= answers_N1)
    judging = judged(Batch(tokens_NT, mask_NT), torch.tensor([0, 1, 0, 1]))
    assert torch.equal(judging.tokens_NT, tokens_NT)
    assert torch.equal(judging.mask_NT[0::2], mask_NT[0::2])
    assert judging.mask_NT[1::2].all()
