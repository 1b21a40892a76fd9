"""The experts of a mixture as one MLP with the neurons of all experts. transformers stacks them in two parameters.

Neuron i of expert e is number e · I + i. After compensation each expert has its own output bias.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · K experts that a token is sent to · R tokens
routed to one expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flap.models.adapter import Block, split
from flap.models.offload import onloaded


@dataclass(frozen=True)
class GateUp:
    """The gate and up projections of all experts as one Linear, expert after expert. whole: experts leave whole."""

    experts: Any
    whole: bool = False

    @property
    def weight(self) -> Tensor:
        """The weights (E · 2I, H)."""
        return _as_stored(self.experts, self.experts.gate_up_proj).flatten(0, 1)

    @property
    def bias(self) -> Tensor | None:
        """The biases (E · 2I); most families have none."""
        return self.experts.gate_up_proj_bias.flatten() if has_bias(self.experts) else None

    @property
    def out_features(self) -> int:
        """The number of rows, E · 2I."""
        return self.weight.shape[0]

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights and biases; every expert must get the same number of rows."""
        parts = (-1, 2 * num_neurons(self.experts)) if self.whole else (self.experts.num_experts, -1)
        _assign(self.experts, "gate_up_proj", _as_stored(self.experts, weight.unflatten(0, parts)))
        if bias is not None:
            _assign(self.experts, "gate_up_proj_bias", bias.unflatten(0, parts))


@dataclass(frozen=True)
class Down:
    """The down projections of all experts as one Linear from all neurons. whole: experts leave whole."""

    experts: Any
    whole: bool = False

    @property
    def weight(self) -> Tensor:
        """The weights (H, E · I)."""
        return _as_stored(self.experts, self.experts.down_proj).transpose(0, 1).flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """bias_EH, one bias an expert; in most families None before compensation."""
        return getattr(self.experts, "down_proj_bias", None)

    @property
    def in_features(self) -> int:
        """The number of columns, E · I."""
        return self.weight.shape[1]

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights, the same number of columns for every expert, and the output biases."""
        parts = (-1, num_neurons(self.experts)) if self.whole else (self.experts.num_experts, -1)
        by_expert = weight.unflatten(1, parts).transpose(0, 1)
        _assign(self.experts, "down_proj", _as_stored(self.experts, by_expert))
        if bias is not None:
            _assign(self.experts, "down_proj_bias", bias)


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """All experts of a layer as one block. Its units are neurons; every expert must keep the same number of them."""

    output: Down
    chosen: int = field(kw_only=True)  # how many of them a token is sent to

    @property
    def num_experts(self) -> int:
        """The number of experts."""
        return int(self.output.experts.num_experts)

    @property
    def is_mixture(self) -> bool:
        """True."""
        return True

    @property
    def chosen_experts(self) -> int:
        """The number of experts that a token is sent to."""
        return self.chosen

    @property
    def watched(self) -> nn.Module:
        """The module that holds all experts."""
        return cast(nn.Module, self.output.experts)

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """Return the inputs of each expert's down projection for the tokens routed to it, whatever kernel is used."""
        experts = self.output.experts
        routed, _ = dispatched(experts, args)
        with onloaded(experts):
            weight_ERH = _as_stored(experts, experts.gate_up_proj)
            biases = experts.gate_up_proj_bias if has_bias(experts) else [None] * self.num_experts
            gate_up = [linear(*one) for one in zip(routed, weight_ERH, biases, strict=True)]
        return [_apply_gate(experts, both) for both in gate_up]

    def router_weights(self, args: tuple[Any, ...]) -> Tensor:
        """Return weight_TE, by which the outputs of the experts are multiplied, from the arguments of `watched`.

        It is 0 for a token that is sent to others. Llama 4's router multiplies the inputs of its experts instead; the
        weight is then 1 for a token that is sent.
        """
        if len(args) == 1:
            sent_ET: Tensor = args[0].unflatten(0, (self.num_experts, -1)).any(dim=-1)
            return sent_ET.T.float()
        hidden_TH, chosen_TK, weight_TK = args
        weight_TE: Tensor = weight_TK.new_zeros(len(hidden_TH), self.num_experts, dtype=torch.float32)
        return weight_TE.scatter_(1, chosen_TK, weight_TK.float())


def experts_block(name: str, experts: Any, chosen: int) -> ExpertsBlock:
    """Return the block of a layer's experts. chosen: how many of them a token is sent to."""
    num_experts, neurons = experts.num_experts, num_neurons(experts)
    columns_UC = split(num_experts * neurons, num_experts * neurons)
    first_E1, neuron_I = 2 * neurons * torch.arange(num_experts)[:, None], torch.arange(neurons)
    # the rows of an expert: all gates and then all ups, or neuron after neuron
    concatenated = getattr(experts, "is_concatenated", True)
    gate_EI, step = (first_E1 + neuron_I, neurons) if concatenated else (first_E1 + 2 * neuron_I, 1)
    rows_UR = torch.stack([gate_EI, gate_EI + step], dim=-1).flatten(0, 1)
    return ExpertsBlock(name, Down(experts), columns_UC, ((GateUp(experts), rows_UR),), chosen=chosen)


def dispatched(experts: Any, args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs (R, H) of each expert, and the weights (R) of its outputs, from the arguments of the experts.

    Llama 4's experts each take all tokens, times the router's weight: zeros for a token that is sent to others.
    """
    if len(args) == 1:
        inputs = [input_TH[input_TH.any(dim=1)] for input_TH in args[0].unflatten(0, (experts.num_experts, -1))]
        return inputs, [input_RH.new_ones(len(input_RH)) for input_RH in inputs]
    hidden_TH, chosen_TK, weight_TK = args
    # sorted by expert, so that the device is waited for once a batch and not once an expert
    order = chosen_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=experts.num_experts).tolist()
    inputs = hidden_TH[order // chosen_TK.shape[1]].split(counts_E)
    return list(inputs), list(weight_TK.flatten()[order].split(counts_E))


def num_neurons(experts: Any) -> int:
    """Return the number of neurons of one expert."""
    return int(experts.down_proj.shape[1 if _is_transposed(experts) else 2])


def _is_transposed(experts: Any) -> bool:
    """Return whether the experts store weights (E, input, output); Llama 4's do, and have no such attribute."""
    return bool(getattr(experts, "is_transposed", True))


def has_bias(experts: Any) -> bool:
    """Return whether the family itself has biases."""
    return bool(getattr(experts, "has_bias", False))


def _apply_gate(experts: Any, gate_up: Tensor) -> Tensor:
    """Return the inputs of the down projections from the outputs of gate and up projections."""
    if hasattr(experts, "_apply_gate"):
        return cast(Tensor, experts._apply_gate(gate_up))
    gate, up = gate_up.chunk(2, dim=-1)
    return cast(Tensor, up * experts.act_fn(gate))


def _as_stored(experts: Any, weight: Tensor) -> Tensor:
    """Return weights (E, output, input) as the experts store them, or the reverse: some store (E, input, output)."""
    return weight.transpose(1, 2) if _is_transposed(experts) else weight


def _assign(experts: nn.Module, name: str, tensor: Tensor) -> None:
    trainable = cast(Any, experts).down_proj.requires_grad
    experts.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=trainable))
