"""The experts of a mixture, which transformers stacks into two parameters, seen as one MLP of all their neurons.

Neuron i of expert e is number e · I + i. Each expert has an output bias of its own once it is compensated.
Legend: E experts · I neurons of one · H hidden size · T tokens · K experts that a token is sent to.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flap.models.adapter import Block, split
from flap.models.offload import at_hand

GROUPED = 8  # neurons: the grouped kernel takes multiples of it in every precision


@dataclass(frozen=True)
class GateUp:
    """gate and up of all experts as one Linear: of each expert the rows of gate, then those of up."""

    experts: Any

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.experts.gate_up_proj).flatten(0, 1)

    @property
    def bias(self) -> None:
        return None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def assign(self, weight: Tensor, bias: None) -> None:
        """Give the experts new rows, as many for each."""
        _assign(self.experts, "gate_up_proj", weight.unflatten(0, (self.experts.num_experts, -1)))


@dataclass(frozen=True)
class Down:
    """down of all experts as one Linear from all neurons (H, E · I); its bias_EH is one for each expert."""

    experts: Any

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.experts.down_proj).transpose(0, 1).flatten(1)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.experts, "down_proj_bias", None)

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Give the experts new columns, as many for each, and new output biases."""
        if bias is not None and self.bias is None:
            self.experts.register_forward_hook(add_output_biases)
        _assign(self.experts, "down_proj", weight.unflatten(1, (self.experts.num_experts, -1)).transpose(0, 1))
        if bias is not None:
            _assign(self.experts, "down_proj_bias", bias)


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """All experts of a layer as one block; its units are neurons, of which every expert must keep the same number."""

    output: Down

    @property
    def num_experts(self) -> int:
        return int(self.output.experts.num_experts)

    @property
    def watched(self) -> nn.Module:
        return cast(nn.Module, self.output.experts)

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """What flows into each expert's down projection, from the tokens routed to it; whatever kernel runs them."""
        experts, (hidden_TH, chosen_TK, _) = self.output.experts, args
        with at_hand(experts):
            gate_up = [hidden_TH[(chosen_TK == e).any(1)] @ experts.gate_up_proj[e].T for e in range(self.num_experts)]
        return [experts.act_fn(gate) * up for gate, up in (both.chunk(2, dim=-1) for both in gate_up)]


def experts_block(name: str, experts: Any) -> ExpertsBlock:
    """The experts of a layer, a module with gate_up_proj (E, 2I, H) and down_proj (E, H, I)."""
    num_experts, _, neurons = experts.down_proj.shape
    columns_UC = split(num_experts * neurons, num_experts * neurons)
    gate_EI = 2 * neurons * torch.arange(num_experts)[:, None] + torch.arange(neurons)
    rows_UR = torch.stack([gate_EI, gate_EI + neurons], dim=-1).flatten(0, 1)
    return ExpertsBlock(name, Down(experts), columns_UC, ((GateUp(experts), rows_UR),))


def add_output_biases(experts: Any, args: tuple[Any, ...], output_TH: Tensor) -> Tensor:
    """Forward hook: Σ_k weight_k · bias of expert k on top of what the experts put out, whatever kernel runs them."""
    _, chosen_TK, weight_TK = args
    with at_hand(experts):
        bias_TH: Tensor = (weight_TK[..., None] * experts.down_proj_bias[chosen_TK]).sum(1)
    return output_TH + bias_TH.to(output_TH.dtype)


def _assign(experts: nn.Module, name: str, tensor: Tensor) -> None:
    trainable = cast(Any, experts).down_proj.requires_grad
    experts.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=trainable))


def experts_fit_kernel(mlp: Block) -> bool:
    """Whether the grouped kernel takes the experts of this block; a plain MLP needs none."""
    return mlp.num_experts == 1 or mlp.num_units // mlp.num_experts % GROUPED == 0


def run_as_its_width_allows(experts: Any) -> None:
    """Say the width again, and the kernel: torch's grouped one wants rows of 16 bytes, so others go one by one."""
    experts.intermediate_dim = experts.down_proj.shape[2]
    if experts.intermediate_dim % GROUPED:
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation = "eager"
