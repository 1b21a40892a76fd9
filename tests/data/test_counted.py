"""Tokens outside of answers are marked where they stand, and marks can be removed again."""

import torch

from flap.data.counted import FEW, counted_positions, counted_predictions, judged, marked, unmarked

TOKENS = torch.tensor([[5, 0, 7, 3], [1, 2, 0, 4]])
COUNTED = torch.tensor([[False, False, True, True], [True, False, False, True]])


def test_marks_can_be_removed() -> None:
    both = marked(TOKENS, COUNTED)
    assert torch.equal(both >= 0, COUNTED)
    assert torch.equal(unmarked(both), TOKENS)  # token 0, too
    assert torch.equal(unmarked(TOKENS), TOKENS)


def test_a_position_counts_as_a_prediction_if_the_next_token_has_no_mark() -> None:
    both = marked(TOKENS, COUNTED)
    assert counted_positions(both).tolist() == COUNTED.flatten().tolist()
    assert counted_predictions(both).tolist() == [False, True, True, True, False, False, True, True]
    assert counted_positions(TOKENS) is None
    assert counted_predictions(TOKENS) is None


def test_a_text_with_few_tokens_of_answers_is_judged_by_all_its_tokens() -> None:
    tokens_NT = torch.arange(8 * FEW).view(4, -1)
    position_T = torch.arange(2 * FEW)
    # Text 0 has FEW tokens of answers in its two windows, text 1 has FEW - 1.
    answers_N1 = torch.tensor([FEW // 2, FEW // 2, FEW // 2, FEW // 2 - 1])[:, None]
    both = marked(tokens_NT, (position_T > 0) & (position_T <= answers_N1))
    judging = judged(both, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(judging[0::2], both[0::2])
    assert torch.equal(judging[1::2], tokens_NT[1::2])
