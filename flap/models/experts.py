"""The experts of a mixture as one MLP with the neurons of all experts, and what they compute in a forward pass.

Legend: E experts · I neurons of one expert · H hidden size · T tokens · K experts that a token is sent to · R tokens
routed to one expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

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


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """All experts of a layer as one block of MLPs, its members. Its units are their neurons."""

    output: Stacked

    @property
    def members(self) -> Sequence[Block]:
        """A block for each expert's neurons; the input projections belong to the block of all experts."""
        experts = self.output.experts
        number = self.output.experts.num_experts
        columns_UC = torch.arange(num_neurons(experts)).reshape(
            -1, self.columns_UC.shape[1]
        )  # one unit, if whole
        return [
            Block(f"{self.name} expert {e}", DownOfOne(experts, e), columns_UC, ())
            for e in range(number)
        ]

    @property
    def idle(self) -> int:
        experts = self.output.experts
        number = int(self.output.experts.num_experts)
        each = sum(one.numel() for one in experts.parameters()) // number
        return int(each * (number - self.num_chosen))

    @property
    def watched(self) -> nn.Module:
        return cast(nn.Module, self.output.experts)

    def observe(self, args: tuple[Any, ...], counted_P: Tensor | None = None) -> Observed:
        """Return the inputs of each expert's down projection for the tokens routed to it, whatever kernel is used.

        Llama 4's router multiplies the inputs of its experts instead of their outputs; the weight of those is then 1.
        """
        activations, _ = routed(experts := self.output.experts, args, counted_P)
        counted = slice(None) if counted_P is None else counted_P
        if len(args) == 1:
            sent_MT = args[0].unflatten(0, (experts.num_experts, -1)).any(dim=-1)
            return Observed(activations, weight_TM=sent_MT.T.float()[counted])
        hidden_TH, chosen_TK, weight_TK = args
        weight_TE = weight_TK.new_zeros(len(hidden_TH), experts.num_experts, dtype=torch.float32)
        weight_TE.scatter_(1, chosen_TK, weight_TK.float())
        return Observed(activations, weight_TM=weight_TE[counted])


def experts_block(name: str, experts: Any, chosen: int) -> ExpertsBlock:
    """Return the block of a layer's experts. chosen: how many of them a token is sent to."""
    num_experts = experts.num_experts
    neurons = num_neurons(experts)
    columns_UC = split(num_experts * neurons, num_experts * neurons)
    projection = stacked_inputs(experts)
    parts = PARTS[projection]
    first_E1 = parts * neurons * torch.arange(num_experts)[:, None]
    neuron_I = torch.arange(neurons)
    # the rows of an expert: all gates and then all ups, or neuron after neuron
    concatenated = getattr(experts, "is_concatenated", True)
    gate_EI, step = (
        (first_E1 + neuron_I, neurons) if concatenated else (first_E1 + parts * neuron_I, 1)
    )
    rows_UR = torch.stack([gate_EI + step * part for part in range(parts)], dim=-1).flatten(0, 1)
    inputs = ((Stacked(experts, projection), rows_UR),)
    return ExpertsBlock(name, Stacked(experts, DOWN), columns_UC, inputs, num_chosen=chosen)


def routed(
    experts: Any, args: tuple[Any, ...], counted_P: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs (R, I) of each expert's down projection, and the weights (R) of its outputs.

    args: of the experts' forward pass. counted_P: which tokens count, and are among the R; None: all.
    """
    inputs, weights, tokens = _dispatched(experts, args)
    if counted_P is not None:
        kept = [counted_P.to(token_R.device)[token_R] for token_R in tokens]
        inputs, weights = (
            [one[k] for one, k in zip(part, kept, strict=True)] for part in (inputs, weights)
        )
    with onloaded(experts):
        weight_ERH = as_stored(experts, getattr(experts, stacked_inputs(experts)))
        biases = (
            experts.gate_up_proj_bias
            if getattr(experts, "has_bias", False)
            else [None] * experts.num_experts
        )
        gate_up = [linear(*one) for one in zip(inputs, weight_ERH, biases, strict=True)]
    return [_apply_gate(experts, both) for both in gate_up], weights


def down_projected(experts: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs (R, H) of each expert, without the router's weights. inputs: of the down projections."""
    with onloaded(experts):
        weight_EHI = as_stored(experts, experts.down_proj)
        biases = getattr(experts, "down_proj_bias", [None] * experts.num_experts)
        return [linear(*one) for one in zip(inputs, weight_EHI, biases, strict=True)]


def _dispatched(
    experts: Any, args: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the inputs (R, H) of each expert, the weights (R) of its outputs, and the numbers (R) of the tokens.

    Llama 4's experts each take all tokens, times the router's weight: zeros for a token that is sent to others.
    """
    if len(args) == 1:
        input_ETH = args[0].unflatten(0, (experts.num_experts, -1))
        tokens = [input_TH.any(dim=1).nonzero().flatten() for input_TH in input_ETH]
        inputs = [input_TH[token_R] for input_TH, token_R in zip(input_ETH, tokens, strict=True)]
        return inputs, [input_RH.new_ones(len(input_RH)) for input_RH in inputs], tokens
    hidden_TH, chosen_TK, weight_TK = args
    # sorted by expert, so that the device is waited for once a batch and not once an expert
    order = chosen_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=experts.num_experts).tolist()
    tokens = order // chosen_TK.shape[1]
    parts = (
        part.split(counts_E) for part in (hidden_TH[tokens], weight_TK.flatten()[order], tokens)
    )
    inputs, weights, numbers = map(list, parts)
    return inputs, weights, numbers


def _apply_gate(experts: Any, gate_up: Tensor) -> Tensor:
    """Return the inputs of the down projections from the outputs of gate and up projections, or of up alone."""
    if stacked_inputs(experts) == UP:
        return cast(Tensor, experts.act_fn(gate_up))
    if hasattr(experts, "_apply_gate"):
        return cast(Tensor, experts._apply_gate(gate_up))
    gate, up = gate_up.chunk(2, dim=-1)
    return cast(Tensor, up * experts.act_fn(gate))
