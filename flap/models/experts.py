"""The experts of a layer as one MLP block with the neurons of all experts.

A block is the attention or the MLP of a layer, divided into the units that are pruned (`Block`).

Legend: E: experts · I: neurons of one expert · H: hidden size · T: tokens · P: positions of a
batch · K: experts that a token is routed to · R: tokens that are routed to one expert (but in
rows_UR: rows of a unit) · M: members of a block, which are the experts · U: units · C: channels of
a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flap.models.block import Block, Observed, split
from flap.models.offload import onloaded
from flap.models.stacked_experts import (
    DOWN,
    PARTS,
    UP,
    DownOfOne,
    Stacked,
    as_stored,
    num_neurons,
    stacked_inputs,
)


class ExpertInputs(NamedTuple):
    """The inputs of the experts in a forward pass. Each list has one tensor for each expert."""

    inputs: list[Tensor]  # the hidden states (R, H) that each expert gets
    weights: list[Tensor]  # the router's weights (R), by which the expert's outputs are multiplied
    tokens: list[Tensor]  # the indices (R) of the tokens that are routed to each expert


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """All experts of a layer as one block.

    The members of the block are the experts. The units of the block are the neurons of all experts.
    """

    output: Stacked

    @property
    def members(self) -> Sequence[Block]:
        """One block for each expert.

        These blocks have no input projections, because the input projections of all experts are one
        tensor, which belongs to the block of all experts.
        """
        experts = self.output.experts
        channels = self.columns_UC.shape[1]  # channels of a unit (a neuron or a whole expert)
        columns_UC = torch.arange(num_neurons(experts)).reshape(-1, channels)
        return [
            Block(f"{self.name} expert {e}", DownOfOne(experts, e), columns_UC, ())
            for e in range(experts.num_experts)
        ]

    @property
    def idle(self) -> int:
        experts = self.output.experts
        number = int(experts.num_experts)
        parameters_of_one = sum(one.numel() for one in experts.parameters()) // number
        return int(parameters_of_one * (number - self.num_chosen))

    @property
    def watched(self) -> nn.Module:
        return cast(nn.Module, self.output.experts)

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        """Return the inputs of each expert's down projection for the tokens routed to it.

        The inputs are computed here from the arguments of the experts module, because a kernel that
        runs all experts at once does not expose the inputs of down projections.

        In Llama 4, the router's weights multiply the inputs of the experts instead of their
        outputs, so `Observed.weight_TM` is 1 for the experts that a token is routed to.
        """
        experts = self.output.experts
        activations, _ = routed(experts, args, mask_P)
        selected = slice(None) if mask_P is None else mask_P
        if len(args) == 1:
            sent_MT = args[0].unflatten(0, (experts.num_experts, -1)).any(dim=-1)
            return Observed(activations, weight_TM=sent_MT.T.float()[selected])
        hidden_TH, chosen_TK, weight_TK = args
        weight_TE = weight_TK.new_zeros(len(hidden_TH), experts.num_experts, dtype=torch.float32)
        weight_TE.scatter_(1, chosen_TK, weight_TK.float())
        return Observed(activations, weight_TM=weight_TE[selected])


def experts_block(name: str, experts: Any, chosen: int) -> ExpertsBlock:
    """Return the block of a layer's experts.

    chosen: the number of experts that each token is routed to.
    """
    num_experts = experts.num_experts
    neurons = num_neurons(experts)
    columns_UC = split(num_experts * neurons, num_experts * neurons)

    projection = stacked_inputs(experts)
    parts = PARTS[projection]
    first_E1 = parts * neurons * torch.arange(num_experts)[:, None]
    neuron_I = torch.arange(neurons)
    # in the matrix of an expert, all gate rows come first, and then all up rows
    if getattr(experts, "is_concatenated", True):
        gate_EI = first_E1 + neuron_I
        step = neurons
    else:  # gate and up rows alternate
        gate_EI = first_E1 + parts * neuron_I
        step = 1
    rows_UR = torch.stack([gate_EI + step * part for part in range(parts)], dim=-1).flatten(0, 1)
    inputs = ((Stacked(experts, projection), rows_UR),)
    return ExpertsBlock(name, Stacked(experts, DOWN), columns_UC, inputs, num_chosen=chosen)


def routed(
    experts: Any, args: tuple[Any, ...], mask_P: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs (R, I) of each expert's down projection, and the router's weights (R).

    Both are lists with one tensor for each expert.

    args: the arguments of the experts' forward pass.
    mask_P: a boolean mask of the positions whose tokens are returned. None means all positions.
    """
    inputs, weights, tokens = _dispatched(experts, args)
    if mask_P is not None:
        kept = [mask_P.to(token_R.device)[token_R] for token_R in tokens]
        inputs = [input_RH[kept_R] for input_RH, kept_R in zip(inputs, kept, strict=True)]
        weights = [weight_R[kept_R] for weight_R, kept_R in zip(weights, kept, strict=True)]
    with onloaded(experts):
        weight_ERH = as_stored(experts, getattr(experts, stacked_inputs(experts)))
        has_bias = getattr(experts, "has_bias", False)
        biases = experts.gate_up_proj_bias if has_bias else [None] * experts.num_experts
        gate_up = [linear(*one) for one in zip(inputs, weight_ERH, biases, strict=True)]
    return [_apply_gate(experts, both) for both in gate_up], weights


def down_projected(experts: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs (R, H) of each expert, not multiplied by the router's weights.

    inputs: the inputs (R, I) of the down projection of each expert.
    """
    with onloaded(experts):
        weight_EHI = as_stored(experts, experts.down_proj)
        biases = getattr(experts, "down_proj_bias", [None] * experts.num_experts)
        return [linear(*one) for one in zip(inputs, weight_EHI, biases, strict=True)]


def _dispatched(experts: Any, args: tuple[Any, ...]) -> ExpertInputs:
    if len(args) == 1:
        return _dispatched_by_zeros(args[0].unflatten(0, (experts.num_experts, -1)))
    hidden_TH, chosen_TK, weight_TK = args
    # Sort the tokens by expert, so that the host waits for the device once per batch. A loop that
    # selects the tokens of each expert would make the host wait once per expert.
    order = chosen_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=experts.num_experts).tolist()
    tokens = order // chosen_TK.shape[1]
    return ExpertInputs(
        inputs=list(hidden_TH[tokens].split(counts_E)),
        weights=list(weight_TK.flatten()[order].split(counts_E)),
        tokens=list(tokens.split(counts_E)),
    )


def _dispatched_by_zeros(input_ETH: Tensor) -> ExpertInputs:
    """Return the inputs of the experts of Llama 4.

    In Llama 4, each expert gets all tokens, multiplied by the router's weight. If a token is not
    routed to the expert, this weight is zero, so rows of zeros are left out.
    """
    tokens = [input_TH.any(dim=1).nonzero().flatten() for input_TH in input_ETH]
    inputs = [input_TH[token_R] for input_TH, token_R in zip(input_ETH, tokens, strict=True)]
    weights = [input_RH.new_ones(len(input_RH)) for input_RH in inputs]
    return ExpertInputs(inputs, weights, tokens)


def _apply_gate(experts: Any, gate_up: Tensor) -> Tensor:
    """Compute the inputs of a down projection from the outputs of the gate and up projections."""
    if stacked_inputs(experts) == UP:  # these experts have no gate
        return cast(Tensor, experts.act_fn(gate_up))
    if hasattr(experts, "_apply_gate"):
        return cast(Tensor, experts._apply_gate(gate_up))
    gate, up = gate_up.chunk(2, dim=-1)
    return cast(Tensor, up * experts.act_fn(gate))
