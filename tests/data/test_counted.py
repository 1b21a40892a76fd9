"""Tokens that do not count are marked in their place, and all that reads windows takes the marks off."""

import torch

from flap.data.counted import FEW, counted_positions, counted_predictions, judged, marked, unmarked

TOKENS = torch.tensor([[5, 0, 7, 3], [1, 2, 0, 4]])
COUNTED = torch.tensor([[False, False, True, True], [True, False, False, True]])


def test_marks_come_off_again() -> None:
    both = marked(TOKENS, COUNTED)
    assert torch.equal(both >= 0, COUNTED) and torch.equal(
        unmarked(both), TOKENS
    )  # also of token 0
    assert torch.equal(unmarked(TOKENS), TOKENS)


def test_a_prediction_counts_where_the_next_token_does() -> None:
    both = marked(TOKENS, COUNTED)
    assert counted_positions(both).tolist() == COUNTED.flatten().tolist()
    assert counted_predictions(both).tolist() == [False, True, True, True, False, False, True, True]
    assert counted_positions(TOKENS) is None and counted_predictions(TOKENS) is None


def test_a_handful_of_answers_does_not_judge_a_text() -> None:
    tokens_NT = torch.arange(8 * FEW).view(4, -1)
    at_T = torch.arange(2 * FEW)
    answers_N1 = torch.tensor([FEW // 2, FEW // 2, FEW // 2, FEW // 2 - 1])[:, None]
    both = marked(tokens_NT, (at_T > 0) & (at_T <= answers_N1))
    judging = judged(both, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(judging[0::2], both[0::2]) and torch.equal(judging[1::2], tokens_NT[1::2])
