"""With structure.scale=error and relative, plans for two layers agree with plans made by hand.

These options rank heads and neurons by the output error that their removal causes.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from flap.method.allocation import ALAM, ALMM, Budget, LayerPlan, Units, price
from flap.method.allocation.ranking import highest
from flap.method.compression import BiasCompensation, slice_layer
from flap.method.importance import WIFV, Scores, score_layers
from flap.models import Pair, Resident, adapt
from tests.cases import collect, tiny_model, tokens
from tests.helpers.plans import drawn

# Two layers, each with two heads of 10 parameters each and four neurons of 2 parameters each, so
# the layers have 56 parameters together. L0h1 is head 1 of layer 0, and L1n3 is neuron 3 of
# layer 1. These units have the following squared output errors, with the errors per parameter in
# brackets:
#   heads: L0h0 8 (.8), L0h1 12 (1.2), L1h0 2 (.2), L1h1 40 (4)
#   neurons of layer 0: 1 2 3 4 (.5 1 1.5 2), of layer 1: 0.2 0.4 0.6 20 (.1 .2 .3 10)
# The best head and the best neuron of each layer (L0h1, L1h1, L0n3, L1n3) come first in the ranking
# and have 24 parameters together. Then come L0n2 (1.5), L0n1 (1), L0h0 (.8), L0n0 (.5), L1n2 (.3),
# L1n1 and L1h0 (.2), and L1n0 (.1). Plans are written as strings: with "01 0011", a layer keeps
# head 1 and neurons 2 and 3.
LAYER = Pair(Units(2, 10), Units(4, 2))
LAYERS = (LAYER, LAYER)
FIRST_SCORES = Pair(
    attention=torch.tensor([[3.0, 5.0], [6.0, 6.0]]),
    mlp=torch.tensor([1.0, 2.0, 3.0, 4.0]),
)
SECOND_SCORES = Pair(
    attention=torch.tensor([[1.0, 1.0], [0.0, 40.0]]),
    mlp=torch.tensor([0.2, 0.4, 0.6, 20.0]),
)
SCORES = Scores((FIRST_SCORES, SECOND_SCORES), inverse_power=(0.01, 0.1))


@pytest.mark.parametrize(
    ("scale", "to_keep", "first", "second"),
    [
        ("error", 26, "01 0011", "01 0001"),
        ("error", 38, "11 0111", "01 0001"),
        ("error", 42, "11 1111", "01 0011"),
        # With `relative`, errors in layer 1 count ten times as much as those in layer 0. After the
        # first four units, the ranking is L1n2 (3), L1n1 and L1h0 (2), L0n2 (1.5), L1n0 and L0n1
        # (1), L0h0 (.8), L0n0 (.5).
        ("relative", 26, "01 0001", "01 0011"),
        ("relative", 38, "01 0001", "11 0111"),
        ("relative", 40, "01 0011", "11 0111"),
    ],
)
def test_by_hand(scale: str, to_keep: float, first: str, second: str) -> None:
    budget = Budget(LAYERS, 1 - to_keep / 56)
    plan = ALAM(scale=scale).allocate(SCORES, budget)
    assert plan.layers == (drawn(first), drawn(second))


@pytest.mark.parametrize(
    ("scale", "first", "second"),
    [
        # L1h0 and the three worst neurons of layer 1 are removed.
        ("error", "11 1111", "01 0001"),
        # L0h0 and the neurons L0n0, L0n1 and L1n0 are removed. The errors of these neurons count as
        # .5, 1 and 1, and the errors of all other neurons as 1.5 or more.
        ("relative", "01 0011", "11 0111"),
    ],
)
def test_almm_ranks_heads_and_neurons_each_by_it(scale: str, first: str, second: str) -> None:
    plan = ALMM(remove_heads=1, scale=scale).allocate(SCORES, Budget(LAYERS, 16 / 56))
    assert plan.layers == (drawn(first), drawn(second))


def test_experts_by_hand() -> None:
    """Layer 0 has two experts of two neurons, and a unit is one neuron of each expert.

    Without the router's weights, the errors are 1 and 2 for the neurons of the first expert, and 3
    and 4 for the neurons of the second expert. The router gives the experts mean squared weights of
    0.5 and 0.1. So the first unit has an error of 1 · 0.5 + 3 · 0.1 = 0.8, and the second unit has
    an error of 2 · 0.5 + 4 · 0.1 = 1.4. A unit has 4 parameters, so the errors per parameter are
    0.2 and 0.35.
    """
    mixture = Pair(Units(2, 10), Units(2, 4, members=2))
    layers = (mixture, LAYER)
    scores = replace(SCORES, routed_power=((0.5, 0.1), ()))
    error = ALAM(scale="error")
    first, second = error.on_one_scale(scores, Budget(layers, 0.5))
    score_EU = first.mlp.unflatten(0, (2, 2))
    assert score_EU.mean(dim=0).tolist() == pytest.approx([0.2, 0.35])
    assert second.mlp.tolist() == pytest.approx([0.1, 0.2, 0.3, 10])

    # L0h1, L1h1, L1n3 and the better unit of layer 0 come first and have 26 parameters. Then come
    # L0h0 (.8) and L1n2 (.3).
    plan = error.allocate(scores, Budget(layers, 1 - 38 / 56))
    assert plan.layers == (drawn("11 0101"), drawn("01 0011"))


@torch.no_grad()
def mlp_output(model: PreTrainedModel, layer: int) -> torch.Tensor:
    outputs: list[torch.Tensor] = []
    adapter = adapt(model)
    watched = adapter.mlp(layer).watched
    hook = watched.register_forward_hook(lambda module, args, output: outputs.append(output))
    adapter.decoder(input_ids=tokens())
    hook.remove()
    return outputs[0]


def test_an_experts_error_is_the_error_of_its_layer() -> None:
    """The error of an expert's neuron is the change of the layer's output if the neuron is removed.

    The change is measured as the mean squared norm of the difference. To check the error, the test
    removes the worst neuron of each expert.

    The router of this tiny Mixtral sends each token to only one expert, with the weight 1. So the
    output of this expert is the output of the layer's MLP.
    """
    model = tiny_model("mixtral", num_experts_per_tok=1)
    adapter = adapt(model)
    experts = 6
    statistics = collect(Resident(model), tokens(), batch_size=4)
    scores = score_layers(WIFV(square_attention=False), adapter, enumerate(statistics))
    budget = price(adapter, 0.5)
    for i, scaled in enumerate(ALAM(scale="error").on_one_scale(scores, budget)):
        # Remove the worst neuron of each expert.
        heads, neurons = budget.layers[i]
        kept = highest(scores.layers[i].mlp, neurons.count - 1, experts)
        worst = sorted(set(range(neurons.count * experts)) - set(kept))
        plan = LayerPlan(tuple(range(heads.count)), kept)
        changed = deepcopy(model)
        slice_layer(adapt(changed), i, plan, BiasCompensation(), statistics[i])

        change = mlp_output(changed, i) - mlp_output(model, i)
        error = float(change.square().sum(dim=-1).mean())
        expected = scaled.mlp[worst].mean() * neurons.price
        assert expected == pytest.approx(error, rel=0.1)
