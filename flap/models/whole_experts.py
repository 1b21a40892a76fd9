"""Blocks whose units are whole experts, which are removed together with their rows of the router.

A block is the attention or the MLP of a layer, divided into the units that are pruned (`Block`).

For a token, the output of a mixture is Σ_e W_e (w_e a_e). W_e is the down projection of expert e,
and a_e is the input of this projection. w_e is the router's weight for expert e, or 0 if the token
is not routed to this expert. The sum over experts is one projection, whose input is the
concatenation of all vectors w_e a_e. In this projection, each expert e is a unit, and the elements
of w_e a_e are the channels of this unit.

Legend: E: experts · I: neurons of one expert · H: hidden size · T: tokens · P: positions of a
batch · U: units · C: channels of a unit · R: tokens that are routed to one expert (but in rows_UR:
rows of a unit).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flap.models.block import Observed, UnitTensor, split
from flap.models.experts import ExpertsBlock, down_projected, routed
from flap.models.stacked_experts import DOWN, PARTS, Stacked, num_neurons, stacked_inputs

# The name of a tensor with a value for each expert. The tensor is an attribute of the router, or of
# the module that contains the router.
CORRECTION = "e_score_correction_bias"


class OfToken(NamedTuple):
    """Norms of an expert's output f (H) for each token, or the means of these norms over tokens.

    The model multiplies f by the router's weight g. In Llama 4, the router's weights multiply the
    inputs of the experts instead of their outputs, so g is 1.
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
        """The parameters that become smaller if an expert is removed.

        Output biases are included, because each expert has a separate output bias.
        """
        tensors = super().unit_tensors
        bias = self.output.bias
        if bias is not None:
            tensors.append(UnitTensor(self.output, "bias", split(bias.numel(), self.num_units)))
        return tensors

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        """Return the inputs of each expert's down projection, multiplied by the router's weight.

        `Observed.routed` has a tensor (R, H + 2) for each expert: the outputs, not multiplied by
        the router's weight, and the two fields of `OfToken`.
        """
        experts = self.output.experts
        inputs, weights = routed(experts, args, mask_P)
        weighted = [
            input_RI * weight_R[:, None] for input_RI, weight_R in zip(inputs, weights, strict=True)
        ]
        if mask_P is not None:
            num_tokens = int(mask_P.sum())
        elif len(args) == 1:  # in Llama 4, the input has a row for each expert and token
            num_tokens = len(args[0]) // experts.num_experts
        else:
            num_tokens = len(args[0])
        outputs = _with_numbers(down_projected(experts, inputs), weights)
        return Observed(weighted, num_tokens, routed=outputs)


def _with_numbers(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield, for each expert, a tensor (R, H + 2) of its outputs and their norms.

    The columns are the H channels of the outputs, in float32, and then the fields of `OfToken`.
    """
    for output_RH, weight_R in zip(outputs, weights, strict=True):
        norm_R = torch.linalg.vector_norm(output_RH.float(), dim=1)
        numbers = OfToken(norm_R, norm_R * weight_R.float())
        yield torch.cat([output_RH.float(), torch.stack(numbers, dim=1)], dim=1)


def whole_experts(name: str, experts: Any, chosen: int, router: Any, parent: Any) -> WholeExperts:
    """Return the block of a layer's experts whose units are whole experts.

    chosen: the number of experts that each token is routed to.
    parent: the module that contains the router.
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
