"""Standardised scores, and the choice of the units that stay, agree with values computed by hand.

A unit is a head or a neuron. Its cost is its number of parameters. The budget is the number of
parameters that should stay.
"""

import pytest
import torch
from torch import Tensor

from flap.method.allocation.ranking import affordable, best_of_each, highest, in_blocks, standardise

SCORE_U = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
PRICE_U = torch.tensor([10, 10, 30, 10, 10])
# The scores of the neurons of two experts: 5, 8 and 6 for the first expert, and 1, 0 and 2 for the
# second.
OF_TWO_EXPERTS = torch.tensor([5.0, 8.0, 6.0, 1.0, 0.0, 2.0])


def positions(mask_U: Tensor) -> list[int]:
    return mask_U.nonzero().flatten().tolist()


def kept(protected: list[int], to_keep: float) -> list[int]:
    protected_U = torch.zeros(5, dtype=torch.bool)
    protected_U[protected] = True
    return positions(affordable(SCORE_U, PRICE_U, protected_U, to_keep))


def test_standardise_by_hand() -> None:
    score_U = torch.tensor([1.0, 2.0, 3.0, 4.0])
    deviation = (5 / 3) ** 0.5  # divisor 3: (2.25 + 0.25 + 0.25 + 2.25) / 3 is the variance
    expected_U = (score_U.double() - 2.5) / deviation
    torch.testing.assert_close(standardise(score_U), expected_U, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-30, 1e30])
@pytest.mark.parametrize("count", [1, 7])
def test_a_constant_layer_becomes_zeros(count: int, value: float) -> None:
    standardised_U = standardise(torch.full((count,), value))
    assert standardised_U.tolist() == [0.0] * count


@pytest.mark.parametrize(
    ("count", "best"),
    [
        (0, ()),
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (0, 1, 2, 3)),
    ],
)
def test_highest_keeps_the_first_of_equal_scores(count: int, best: tuple[int, ...]) -> None:
    score_U = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert highest(score_U, count) == best


@pytest.mark.parametrize(
    ("count", "best"),
    [
        (0, ()),
        (1, (1, 5)),
        (2, (1, 2, 3, 5)),
        (3, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_highest_of_each_expert(count: int, best: tuple[int, ...]) -> None:
    assert highest(OF_TWO_EXPERTS, count, members=2) == best


def test_a_block_has_the_same_number_of_neurons_of_each_expert() -> None:
    score_B, neurons_BN = in_blocks(OF_TWO_EXPERTS, 1, members=2)
    assert score_B.tolist() == [5.0, 3.5, 2.5]
    assert neurons_BN.tolist() == [[1, 5], [2, 3], [0, 4]]

    score_B, neurons_BN = in_blocks(OF_TWO_EXPERTS, 2, members=2)
    assert score_B.tolist() == [4.25]
    assert neurons_BN.tolist() == [[1, 2, 5, 3]]


@pytest.mark.parametrize(
    ("to_keep", "size"),
    [
        (11, 1),
        (16, 2),
        (30, 2),
        (34, 2),
        (36, 3),
        (50, 3),
        (56, 4),
        (70, 5),
        (1000, 5),
    ],
)
def test_affordable_is_the_prefix_nearest_to_the_budget(to_keep: float, size: int) -> None:
    """The first units of the ranking stay.

    Their number is chosen so that their total cost is as near as possible to the budget.

    The first 1, 2, 3, 4 and 5 units cost 10, 20, 50, 60 and 70. For example, 20 is nearest to a
    budget of 34, and 50 is nearest to a budget of 36.
    """
    assert kept([], to_keep) == list(range(size))


@pytest.mark.parametrize(
    ("protected", "to_keep", "expected"),
    [
        # A protected unit stays, and its price (number of parameters) is first subtracted from the
        # budget.
        ([4], 20, [0, 4]),
        ([4], 12, [4]),
        ([2], 44, [0, 2]),
        ([2, 3], 40, [2, 3]),
        # Protected units stay even if they cost more than the budget.
        ([2, 3], 0, [2, 3]),
        ([0, 1, 2, 3, 4], 1, [0, 1, 2, 3, 4]),
    ],
)
def test_protected_units_are_always_kept(
    protected: list[int], to_keep: float, expected: list[int]
) -> None:
    assert kept(protected, to_keep) == expected


def test_best_of_each() -> None:
    scores = [
        torch.tensor([1.0, 3.0, 2.0]),
        torch.tensor([5.0, 5.0]),
        torch.tensor([-1.0]),
    ]
    assert positions(best_of_each(scores, [1, 1, 1])) == [1, 3, 5]
    assert positions(best_of_each(scores, [2, 1, 1])) == [1, 2, 3, 5]


def test_the_worst_neuron_fills_no_block() -> None:
    score_U = torch.tensor([1.0, 5.0, 3.0, 3.0, 2.0])
    score_B, neurons_BN = in_blocks(score_U, 2)
    assert neurons_BN.tolist() == [[1, 2], [3, 4]]
    assert score_B.tolist() == [4.0, 2.5]
