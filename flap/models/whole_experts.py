"""Blocks whose units are whole experts, which are removed with their rows of the router.

The output of a mixture is Σ_e W_e (w_e a_e), which is one projection of all neurons. Here w_e is
the router's weight of expert e for a token. The weight w_e is 0 if the token is not routed to
expert e. A unit is an expert, and its channels are w_e a_e over all tokens.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · U units · R tokens that are
routed to one expert.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flap.models.block import Observed, UnitTensor, split
from flap.models.experts import ExpertsBlock, down_projected, routed
from flap.models.stacked_experts import DOWN, PARTS, Stacked, num_neurons, stacked_inputs

# A tensor with a value for each expert, as an attribute of the router or of its parent.
CORRECTION = "e_score_correction_bias"


class OfToken(NamedTuple):
    """Numbers of each token at an expert with output f (H) and router weight g.

    The class is also used for means over tokens. The model multiplies f by g. The router of Llama 4
    multiplies inputs instead, so there g = 1.
    """

    norm: Tensor  # the norm of the output, ‖f‖₂
    weighted: Tensor  # the norm of the weighted output, g ‖f‖₂


@dataclass(frozen=True)
class WholeExperts(ExpertsBlock):
    """All experts of a layer as one block whose units are experts."""

    unit: ClassVar[str] = "expert"
    whole: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        return self.num_chosen

    @property
    def unit_tensors(self) -> list[UnitTensor]:
        """The parameters that become smaller.

        Output biases are included, because each expert has one.
        """
        tensors = super().unit_tensors
        bias = self.output.bias
        if bias is not None:
            tensors.append(UnitTensor(self.output, "bias", split(bias.numel(), self.num_units)))
        return tensors

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        """Return the inputs of each expert's down projection, multiplied by the router's weight.

        `routed` has a tensor (R, H + numbers) for each expert: the outputs without the router's
        weight, and the fields of `OfToken`.
        """
        experts = self.output.experts
        inputs, weights = routed(experts, args, mask_P)
        weighted = [
            input_RI * weight_R[:, None] for input_RI, weight_R in zip(inputs, weights, strict=True)
        ]
        if mask_P is not None:
            num_tokens = int(mask_P.sum())
        elif len(args) == 1:  # in Llama 4, each expert gets all tokens
            num_tokens = len(args[0]) // experts.num_experts
        else:
            num_tokens = len(args[0])
        outputs = _with_numbers(down_projected(experts, inputs), weights)
        return Observed(weighted, num_tokens, routed=outputs)


def _with_numbers(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the outputs of each expert in float32, with the fields of `OfToken` as last columns."""
    for output_RH, weight_R in zip(outputs, weights, strict=True):
        norm_R = torch.linalg.vector_norm(output_RH.float(), dim=1)
        numbers = OfToken(norm_R, norm_R * weight_R.float())
        yield torch.cat([output_RH.float(), torch.stack(numbers, dim=1)], dim=1)


def whole_experts(name: str, experts: Any, chosen: int, router: Any, parent: Any) -> WholeExperts:
    """Return the block of a layer's experts whose units are whole experts.

    chosen: The number of experts that a token is routed to.
    parent: The module that holds the router.
    """
    number = experts.num_experts
    neurons = num_neurons(experts)
    projection = stacked_inputs(experts)
    stacked = Stacked(experts, projection, whole=True)
    expert_rows_UR = split(number * PARTS[projection] * neurons, number)
    router_rows_UR = split(number, number)
    corrected = [module for module in (router, parent) if hasattr(module, CORRECTION)]
    return WholeExperts(
        name,
        output=Stacked(experts, DOWN, whole=True),
        columns_UC=split(number * neurons, number),
        inputs=((stacked, expert_rows_UR), (router, router_rows_UR)),
        vectors=tuple((module, CORRECTION, router_rows_UR) for module in corrected),
        num_chosen=chosen,
    )
