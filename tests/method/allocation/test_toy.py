"""Plans for a model of two layers agree with plans computed by hand.

A layer with lower scores than all other layers still keeps one head and one neuron.
"""

import math

import pytest
import torch

from flap.method.allocation import ALAM, ALMM, ULMM, ULUM, Budget, LayerPlan, Structure, Units
from flap.method.importance import Scores
from flap.models import Pair
from tests.cases import ARCHITECTURES
from tests.helpers.plans import drawn
from tests.helpers.ratios import assert_meets, budget_of, model_of

ADAPTIVE = {"AL-MM": ALMM, "AL-AM": ALAM}

# Two layers, each with two heads of 10 parameters each and four neurons of 3 parameters each, so
# the layers have 64 parameters together. L0h1 is head 1 of layer 0, and L1n3 is neuron 3 of
# layer 1. These units have the following standardised scores:
#   heads: L0h1 0.87, L1h0 0.29, L1h1 -0.29, L0h0 -0.87
#   neurons: L1n3 1.5, L0n3 1.16, L0n2 0.39, L0n1 -0.39, L1n0 to L1n2 -0.5, L0n0 -1.16
# The best head and the best neuron of each layer (L0h1, L1h0, L0n3, L1n3) always stay, and have 26
# parameters together.
TOY_LAYER = Pair(Units(2, 10), Units(4, 3))
TOY_LAYERS = (TOY_LAYER, TOY_LAYER)
FIRST_SCORES = Pair(
    attention=torch.tensor([[1.0, 1.0], [3.0, 3.0]]),
    mlp=torch.tensor([1.0, 2.0, 3.0, 4.0]),
)
SECOND_SCORES = Pair(
    attention=torch.tensor([[0.0, 4.0], [1.0, 1.0]]),
    mlp=torch.tensor([0.0, 0.0, 0.0, 8.0]),
)
TOY_SCORES = Scores((FIRST_SCORES, SECOND_SCORES))

# Each case has a structure, a ratio, and the kept heads and neurons of layer 0 and of layer 1. For
# example, "01 0011" stands for head 1 and neurons 2 and 3.
CASES = [
    # Each layer keeps 16 parameters: one head and two neurons.
    (ULUM(), 0.5, "01 0011", "10 1001"),
    # Each layer should lose 17.6 parameters: one head (10), and 2.5 neurons, rounded up to three.
    (ULUM(), 0.55, "01 0001", "10 0001"),
    # Each layer should lose 8.96 parameters. A head has 10, which is too many, so each layer loses
    # three neurons (9).
    (ULUM(), 0.28, "11 0001", "11 0001"),
    # 22.4 parameters should be removed: one head of layer 1 (10), and 4.1 neurons. Layer 0 can lose
    # only three neurons, so layer 1 loses the fourth.
    (ULMM(remove_heads=1), 0.35, "11 0001", "10 1101"),
    # 38.4 parameters should stay. Three heads have 30 parameters, so 8.4 parameters remain for
    # neurons. Three neurons (9) are nearest to that.
    (ALMM(remove_heads=1), 0.4, "01 0011", "11 0001"),
    # 32 parameters should stay. The units of the ranking up to L0n2 have 29 parameters, and the
    # units up to L1h1 have 39. 29 is nearer to 32.
    (ALAM(), 0.5, "01 0011", "10 0001"),
    # 38.4 parameters should stay. The units of the ranking up to L1h1 have 39.
    (ALAM(), 0.4, "01 0011", "11 0001"),
    # 44.8 parameters should stay. The units of the ranking up to L0n1 and L1n0 have 45.
    (ALAM(), 0.3, "01 0111", "11 1001"),
    # 60.8 parameters should stay. All units except L0n0 have 61.
    (ALAM(), 0.05, "11 0111", "11 1111"),
]


@pytest.mark.parametrize(("structure", "ratio", "first", "second"), CASES)
def test_by_hand(structure: Structure, ratio: float, first: str, second: str) -> None:
    plan = structure.allocate(TOY_SCORES, Budget(TOY_LAYERS, ratio))
    assert plan.layers == (drawn(first), drawn(second))


@pytest.mark.parametrize(
    ("to_keep", "kept"),
    [
        (32, "01 0101"),
        (38, "01 0101"),
        (45, "01 1111"),
    ],
)
def test_experts_by_hand(to_keep: float, kept: str) -> None:
    """Layer 0 has two experts of two neurons each.

    The standardised scores of the neurons are -1.16 and -.39 in the first expert, and .39 and 1.16
    in the second.

    A unit of this layer is one neuron of each expert, and has 6 parameters. The layer has two
    units, with the mean scores .39 and -.39. In the ranking, L0h1, L1h0, the better unit of layer 0
    and L1n3 come first and have 29 parameters. With L1h1 the total is 39, and with the second unit
    of layer 0 it is 45.
    """
    mixture = Pair(Units(2, 10), Units(2, 6, members=2))
    budget = Budget((mixture, TOY_LAYER), 1 - to_keep / 64)
    plan = ALAM().allocate(TOY_SCORES, budget)
    assert plan.layers[0] == drawn(kept)


@pytest.mark.parametrize("structure", ADAPTIVE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_worse_than_all_others_keeps_one_unit_of_each(
    architecture: str, structure: str
) -> None:
    budget = budget_of(architecture, 0.7)
    groups = budget.layers[0].attention.count
    bad = Pair(torch.full((groups, 4), 1e-30), torch.full((56,), 1e-30))
    # In every layer except layer 1, 60 % of the heads and neurons have scores above the mean of the
    # layer. At the ratio of 0.7, even these cannot all stay.
    good = Pair(torch.zeros(groups, 4), torch.zeros(56))
    good.attention[: math.ceil(0.6 * groups)] = 1.0
    good.mlp[:34] = 1.0

    plan = ADAPTIVE[structure]().allocate(Scores((good, bad, good, good)), budget)
    assert plan.layers[1] == LayerPlan((0,), (0,))
    assert_meets(plan, model_of(architecture), 0.7)
