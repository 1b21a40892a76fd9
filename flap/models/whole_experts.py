"""Experts that leave whole, with their rows of the router, which then chooses from the experts that stay.

The output of a mixture is one projection Σ_e W_e (w_e a_e) of all neurons, where w_e is the router's weight of expert e
for a token: 0 if the token is not sent to it. So a unit is an expert, and its channels are w_e a_e over all tokens.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · K experts that a token is sent to.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flap.models.block import Observed
from flap.models.experts import DOWN, PARTS, ExpertsBlock, Stacked, num_neurons, routed, stacked_inputs

VECTORS = ("e_score_correction_bias",)  # of a router or its parent, with a value for each expert


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

    unit: ClassVar[str] = "expert"
    whole: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        """The number of experts that a token is sent to."""
        return self.num_chosen

    @property
    def num_parameters(self) -> int:
        """The number of prunable parameters, with the output biases, which leave with their experts."""
        bias = self.output.bias
        return super().num_parameters + (0 if bias is None else bias.numel())

    def observe(self, args: tuple[Any, ...]) -> Observed:
        """Return the inputs of each expert's down projection for the tokens routed to it, times the router's weight."""
        pairs = zip(*routed(self.output.experts, args), strict=True)
        num_tokens = len(args[0]) // (self.output.experts.num_experts if len(args) == 1 else 1)
        return Observed([activation_RI * weight_R[:, None] for activation_RI, weight_R in pairs], num_tokens)


def whole_experts(name: str, experts: Any, chosen: int, router: Any, parent: Any) -> WholeExperts:
    """Return the block of a layer's experts that leave whole. chosen: how many of them a token is sent to."""
    number, neurons, projection = experts.num_experts, num_neurons(experts), stacked_inputs(experts)
    sizes = neurons, PARTS[projection] * neurons
    columns_UC, rows_UR = (torch.arange(number * size).reshape(number, size) for size in sizes)
    each = torch.arange(number)[:, None]
    inputs = ((Stacked(experts, projection, whole=True), rows_UR), (Router(router), each))
    vectors = tuple((one, name, each) for one in (router, parent) for name in VECTORS if hasattr(one, name))
    return WholeExperts(
        name, Stacked(experts, DOWN, whole=True), columns_UC, inputs, vectors=vectors, num_chosen=chosen
    )
