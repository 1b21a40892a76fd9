"""Experts that leave whole, with their rows of the router, which then chooses from the experts that stay.

The output of a mixture is one projection Σ_e W_e (w_e a_e) of all neurons, where w_e is the router's weight of expert e
for a token: 0 if the token is not sent to it. So a unit is an expert, and its channels are w_e a_e over all tokens.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · K experts that a token is sent to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flap.models.experts import Down, ExpertsBlock, GateUp, dispatched, num_neurons

VECTORS = ("e_score_correction_bias",)  # of a router, with a value for each expert


@dataclass(frozen=True)
class Router:
    """The router of a layer as an input projection with one row (H) for each expert."""

    module: Any

    @property
    def weight(self) -> Tensor:
        """The weights (E, H)."""
        weight: Tensor = self.module.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The biases (E); most families have none."""
        return getattr(self.module, "bias", None)

    @property
    def out_features(self) -> int:
        """The number of rows, E."""
        return len(self.weight)

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights and biases."""
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                trainable = getattr(self.module, name).requires_grad
                setattr(self.module, name, nn.Parameter(tensor.contiguous(), requires_grad=trainable))


@dataclass(frozen=True)
class WholeExperts(ExpertsBlock):
    """All experts of a layer as one block whose units are experts. Nothing stands in for those that leave."""

    @property
    def whole_experts(self) -> bool:
        """True."""
        return True

    @property
    def num_parameters(self) -> int:
        """The number of prunable parameters, with the output biases, which leave with their experts."""
        bias_EH = self.output.bias
        return super().num_parameters + (0 if bias_EH is None else bias_EH.numel())

    def num_tokens(self, args: tuple[Any, ...]) -> int | None:
        """Return the number of all tokens."""
        return len(args[0]) // (self.num_experts if len(args) == 1 else 1)

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """Return the inputs of each expert's down projection for the tokens routed to it, times the router's weight."""
        _, weights = dispatched(self.output.experts, args)
        pairs = zip(super().activations(args), weights, strict=True)
        return [activation_RI * weight_R[:, None] for activation_RI, weight_R in pairs]


def whole_experts(name: str, experts: Any, chosen: int, router: Any) -> WholeExperts:
    """Return the block of a layer's experts that leave whole. chosen: how many of them a token is sent to."""
    number, neurons = experts.num_experts, num_neurons(experts)
    columns_UC, rows_UR = (torch.arange(number * size).reshape(number, size) for size in (neurons, 2 * neurons))
    inputs = ((GateUp(experts, whole=True), rows_UR), (Router(router), torch.arange(number)[:, None]))
    each = torch.arange(number)[:, None]
    vectors = tuple((router, one, each) for one in VECTORS if hasattr(router, one))
    return WholeExperts(name, Down(experts, whole=True), columns_UC, inputs, vectors=vectors, chosen=chosen)
