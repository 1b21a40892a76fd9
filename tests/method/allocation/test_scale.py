"""`structure.scale`: plans of a two-layer budget computed by hand on each scale, and what has no such scale."""

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

# Two layers of two heads at 10 and four neurons at 2: 56 parameters. Errors of heads, and per parameter:
# L0h0 8 (.8), L0h1 12 (1.2), L1h0 2 (.2), L1h1 40 (4); of neurons L0 1 2 3 4 (.5 1 1.5 2), L1 0.2 0.4 0.6 20 (.1 .2
# .3 10). The best of each layer (L0h1, L1h1, L0n3, L1n3) cost 24 and lead; then L0n2 1.5, L0n1 1, L0h0 .8, L0n0 .5,
# L1n2 .3, L1n1 and L1h0 .2, L1n0 .1.
LAYERS = (Pair(Units(2, 10), Units(4, 2)),) * 2
SCORES = Scores(
    (
        Pair(torch.tensor([[3.0, 5.0], [6.0, 6.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0])),
        Pair(torch.tensor([[1.0, 1.0], [0.0, 40.0]]), torch.tensor([0.2, 0.4, 0.6, 20.0])),
    ),
    inverse_power=(0.01, 0.1),
)


@pytest.mark.parametrize(
    ("scale", "to_keep", "first", "second"),
    [
        ("error", 26, LayerPlan((1,), (2, 3)), LayerPlan((1,), (3,))),
        ("error", 38, LayerPlan((0, 1), (1, 2, 3)), LayerPlan((1,), (3,))),
        ("error", 42, LayerPlan((0, 1), (0, 1, 2, 3)), LayerPlan((1,), (2, 3))),
        # layer 1 counts ten times: L1n2 3, L1n1 and L1h0 2, L0n2 1.5, L1n0 1, L0n1 1, L0h0 .8, L0n0 .5
        ("relative", 26, LayerPlan((1,), (3,)), LayerPlan((1,), (2, 3))),
        ("relative", 38, LayerPlan((1,), (3,)), LayerPlan((0, 1), (1, 2, 3))),
        ("relative", 40, LayerPlan((1,), (2, 3)), LayerPlan((0, 1), (1, 2, 3))),
    ],
)
def test_by_hand(scale: str, to_keep: float, first: LayerPlan, second: LayerPlan) -> None:
    assert ALAM(scale=scale).allocate(SCORES, Budget(LAYERS, 1 - to_keep / 56)).layers == (
        first,
        second,
    )


@pytest.mark.parametrize(("scale", "leaves"), [("error", 1), ("relative", 0)])
def test_almm_ranks_heads_and_neurons_each_by_it(scale: str, leaves: int) -> None:
    # of L0h0 (.8) and L1h0 (.2 as an error, 2 as a relative one) one leaves, and three neurons: to keep 40
    plan = ALMM(remove_heads=1, scale=scale).allocate(SCORES, Budget(LAYERS, 16 / 56))
    assert [len(layer.attention) for layer in plan.layers] == ([2, 1] if leaves == 1 else [1, 2])
    kept = [layer.mlp for layer in plan.layers]
    # as errors L1's three worst leave; ten times as heavy, they are worth 1, 2, 3 against .5, 1, 1.5 of L0
    assert kept == ([(0, 1, 2, 3), (3,)] if scale == "error" else [(2, 3), (1, 2, 3)])


def test_experts_by_hand() -> None:
    """L0 has two experts of two neurons. The router weighs the second one less, so that rank 2 costs less than L1n2.

    Of L0, rank 1 has 2 · 0.5 + 4 · 0.1 = 1.4 and rank 2 has 1 · 0.5 + 3 · 0.1 = 0.8 at a price of 4: 0.35 and 0.2.
    """
    layers = (Pair(Units(2, 10), Units(2, 4, members=2)), LAYERS[1])
    scores = replace(SCORES, routed_power=((0.5, 0.1), ()))
    error = ALAM(scale="error")
    first, second = error.on_one_scale(scores, Budget(layers, 0.5))
    assert first.mlp.unflatten(0, (2, 2)).mean(dim=0).tolist() == pytest.approx([0.2, 0.35])
    assert second.mlp.tolist() == pytest.approx([0.1, 0.2, 0.3, 10])
    # L0h1, L1h1, L1n3 and the best rank of L0 lead with 26; then L0h0 .8, L1n2 .3, L0 rank 2 .2
    plan = error.allocate(scores, Budget(layers, 1 - 38 / 56))
    assert plan.layers == (LayerPlan((0, 1), (1, 3)), LayerPlan((1,), (2, 3)))


@torch.no_grad()
def experts_output(model: PreTrainedModel, layer: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    watched = adapt(model).mlp(layer).watched
    hook = watched.register_forward_hook(lambda module, args, output: seen.append(output))
    adapt(model).decoder(input_ids=tokens())
    hook.remove()
    return seen[0]


def test_an_experts_error_is_the_one_that_its_layer_makes() -> None:
    """With one expert for each token, whose weight is 1: the mean squared change of the layer's output."""
    model = tiny_model("mixtral", num_experts_per_tok=1)
    adapter = adapt(model)
    statistics = collect(Resident(model), tokens(), batch_size=4)
    scores = score_layers(WIFV(square_attention=False), adapter, enumerate(statistics))
    budget = price(adapter, 0.5)
    for i, scaled in enumerate(ALAM(scale="error").on_one_scale(scores, budget)):
        heads, (count, experts) = (
            budget.layers[i].attention.count,
            (adapter.mlp(i).num_units // 6, 6),
        )
        kept = highest(scores.layers[i].mlp, count - 1, experts)
        worst = sorted(set(range(count * experts)) - set(kept))
        changed = deepcopy(model)
        slice_layer(
            adapt(changed),
            i,
            LayerPlan(tuple(range(heads)), kept),
            BiasCompensation(),
            statistics[i],
        )
        error = (experts_output(changed, i) - experts_output(model, i)).square().sum(dim=-1).mean()
        assert scaled.mlp[worst].mean() * budget.layers[i].mlp.price == pytest.approx(
            float(error), rel=0.1
        )
