"""Experts that are removed whole, with their rows of the router, which then chooses from the experts that stay.

The output of a mixture is one projection Σ_e W_e (w_e a_e) of all neurons, where w_e is the router's weight of expert e
for a token: 0 if the token is not sent to it. So a unit is an expert, and its channels are w_e a_e over all tokens.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · U units · R tokens routed to one expert.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flap.models.block import Observed
from flap.models.experts import ExpertsBlock, down_projected, routed
from flap.models.stacked_experts import DOWN, PARTS, Stacked, num_neurons, stacked_inputs

CORRECTION = "e_score_correction_bias"  # of a router or its parent, with a value for each expert


class OfToken(NamedTuple):
    """Numbers of the tokens that are sent to an expert with output f (H) and router weight g; or their means.

    g is what the model multiplies f with. Llama 4's router multiplies inputs instead, so there g = 1.
    """

    norm: Tensor  # ‖f‖₂
    weighted: Tensor  # g ‖f‖₂


@dataclass(frozen=True)
class WholeExperts(ExpertsBlock):
    """All experts of a layer as one block whose units are experts."""

    unit: ClassVar[str] = "expert"
    whole: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        return self.num_chosen

    @property
    def num_parameters(self) -> int:
        """The number of prunable parameters, with the output biases, which are removed."""
        bias = self.output.bias
        return super().num_parameters + (0 if bias is None else bias.numel())

    def observe(self, args: tuple[Any, ...], counted_P: Tensor | None = None) -> Observed:
        """Return the inputs of each expert's down projection for the tokens routed to it, times the router's weight.

        Also each expert's outputs for these tokens without it, and their numbers, as (R, H + numbers).
        """
        inputs, weights = routed(self.output.experts, args, counted_P)
        num_tokens = len(args[0]) // (self.output.experts.num_experts if len(args) == 1 else 1)
        weighted = [
            activation_RI * weight_R[:, None]
            for activation_RI, weight_R in zip(inputs, weights, strict=True)
        ]
        numbers = _with_numbers(down_projected(self.output.experts, inputs), weights)
        return Observed(
            weighted, num_tokens if counted_P is None else int(counted_P.sum()), routed=numbers
        )


def _with_numbers(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the outputs of each expert with the numbers of its tokens beside them, in float32."""
    for output_RH, weight_R in zip(outputs, weights, strict=True):
        norm_R = torch.linalg.vector_norm(output_RH.float(), dim=1)
        numbers = OfToken(norm_R, norm_R * weight_R.float())
        yield torch.cat([output_RH.float(), torch.stack(numbers, dim=1)], dim=1)


def whole_experts(name: str, experts: Any, chosen: int, router: Any, parent: Any) -> WholeExperts:
    """Return the block of a layer's experts that are removed whole. chosen: how many of them a token is sent to.

    parent: the module that the router is in.
    """
    number = experts.num_experts
    neurons = num_neurons(experts)
    projection = stacked_inputs(experts)
    sizes = neurons, PARTS[projection] * neurons
    columns_UC, rows_UR = (torch.arange(number * size).reshape(number, size) for size in sizes)
    each = torch.arange(number)[:, None]
    vectors = tuple(
        (module, CORRECTION, each) for module in (router, parent) if hasattr(module, CORRECTION)
    )
    inputs = ((Stacked(experts, projection, whole=True), rows_UR), (router, each))
    down = Stacked(experts, DOWN, whole=True)
    return WholeExperts(name, down, columns_UC, inputs, vectors=vectors, num_chosen=chosen)
