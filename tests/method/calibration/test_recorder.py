"""The recorders measure E[1 / ‖h‖²] of hidden states h, and E[w²] of router weights w.

Both means agree with values computed by hand.
"""

import pytest
import torch
from torch import Tensor, nn

from flap.method.calibration.recorder import (
    BlockRecorder,
    ResidualRecorder,
    inverse_power,
    routed_power,
)
from flap.models import adapt
from flap.models.stacked_experts import refresh_experts
from tests.cases import random_model, tiny_model, tokens
from tests.models.test_whole_experts import EXPERTS, FAMILIES, config_of

# The hidden states, experts and router weights of three tokens. Each token is routed to two of six
# experts.
HIDDEN = torch.randn(3, 32)
CHOSEN = torch.tensor(
    [
        [0, 1],
        [1, 5],
        [1, 0],
    ]
)
WEIGHTS = torch.tensor(
    [
        [0.5, 0.5],
        [0.8, 0.2],
        [1.0, 0.0],
    ]
)


def routed(*batches: tuple[Tensor, ...]) -> BlockRecorder:
    adapter = adapt(tiny_model("mixtral"))
    recorder = BlockRecorder(adapter.mlp(0), covariance=False)
    for batch in batches:
        recorder.record(None, nn.Identity(), batch)
    return recorder


@pytest.mark.parametrize("sizes", [[3], [1, 2]], ids=["one batch", "two batches"])
def test_weights_by_hand(sizes: list[int]) -> None:
    """The sums of w² are 0.25 for expert 0, 0.25 + 0.64 + 1 for expert 1, and 0.04 for expert 5."""
    expected = pytest.approx((0.25 / 3, 1.89 / 3, 0, 0, 0, 0.04 / 3))
    batches = list(zip(HIDDEN.split(sizes), CHOSEN.split(sizes), WEIGHTS.split(sizes), strict=True))
    assert routed_power([routed(*batches)]) == expected
    one_recorder_for_each = [routed(batch) for batch in batches]
    assert routed_power(one_recorder_for_each) == expected


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_weights_are_those_of_the_output(family: str) -> None:
    """The recorded weight of an expert is the factor by which its output is multiplied.

    To measure this factor, expert e gets an additional output bias of 1 in dimension e.
    """
    model = random_model(config_of(family))
    block = adapt(model).mlp(2)  # layer 2 has experts in every family
    experts = block.watched
    weights = []
    outputs = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weights.append(block.observe(args).weight_TM)
        outputs.append(output)

    experts.register_forward_hook(record)
    adapt(model).decoder(input_ids=tokens())

    width = getattr(model.config, "moe_latent_size", None) or model.config.hidden_size
    bias_EH = getattr(experts, "down_proj_bias", torch.zeros(EXPERTS, width))
    with_ones_EH = bias_EH + torch.eye(*bias_EH.shape)
    experts.register_parameter("down_proj_bias", nn.Parameter(with_ones_EH))
    refresh_experts(experts)
    # Make the hook `record` run last, after the hooks that flap has added.
    experts._forward_hooks.move_to_end(min(experts._forward_hooks))
    adapt(model).decoder(input_ids=tokens())

    weight_TE = weights[0]
    before, after = outputs
    change = (after - before)[..., :EXPERTS]
    # In Llama 4, the module returns the output of each expert, and these outputs are summed here.
    # In all other families, the module returns their sum, so the sum here has one term.
    added_TE = change.reshape(-1, *weight_TE.shape).sum(dim=0)
    assert ((weight_TE > 0).sum(dim=1) == 2).all()
    assert torch.allclose(added_TE, weight_TE, atol=1e-5)


def recorded(*batches: Tensor) -> ResidualRecorder:
    recorder = ResidualRecorder()
    for batch in batches:
        recorder.record(None, nn.Identity(), (batch,))
    return recorder


@pytest.mark.parametrize("sizes", [[3], [1, 2]], ids=["one batch", "two batches"])
def test_hidden_states_by_hand(sizes: list[int]) -> None:
    """The squared norms are 25, 4 and 100, so the mean of 1 / ‖h‖² is (0.04 + 0.25 + 0.01) / 3."""
    hidden_NTD = torch.tensor(
        [
            [
                [3.0, 4.0],
                [0.0, 2.0],
                [6.0, 8.0],
            ]
        ]
    )
    batches = hidden_NTD.split(sizes, dim=1)
    assert inverse_power([recorded(*batches)]) == pytest.approx(0.1)
    one_recorder_for_each = [recorded(batch) for batch in batches]
    assert inverse_power(one_recorder_for_each) == pytest.approx(0.1)


def test_hidden_states_of_zeros_are_left_out() -> None:
    ordinary_NTD = torch.tensor([[[3.0, 4.0]]])
    zeros_NTD = torch.tensor([[[0.0, 0.0], [1e-30, 0.0]]])
    together_NTD = torch.cat([ordinary_NTD, zeros_NTD], dim=1)
    assert inverse_power([recorded(together_NTD)]) == pytest.approx(0.04)
    assert inverse_power([recorded(zeros_NTD)]) == 0.0
    assert inverse_power([recorded()]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    # The squares of these values exceed the largest number of float16.
    hidden_NTD = torch.tensor([[[300.0, 400.0]]], dtype=dtype)
    found = inverse_power([recorded(hidden_NTD)])
    assert found == pytest.approx(1 / 250_000, rel=1e-5)
