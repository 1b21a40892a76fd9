"""Chains of removals, and the order of the channels that serves a whole chain."""

import torch

from flap.method.compression.compensation import Removal
from flap.method.compression.linear import chains, order


def removals(*sets: set[int]) -> list[Removal]:
    return [Removal(torch.tensor(sorted(set(range(6)) - one)), torch.tensor(sorted(one))) for one in sets]


def test_each_removal_of_a_chain_contains_those_before_it() -> None:
    assert chains(removals({1, 3, 5}, {3}, {0, 2}, {3, 5}, {3})) == [[1, 4, 3, 0], [2]]


def test_channels_are_in_the_order_in_which_they_stay_longest() -> None:
    assert order(removals({3}, {3, 5}, {1, 3, 5})).tolist() == [0, 2, 4, 1, 5, 3]
