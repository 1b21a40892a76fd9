"""The experts of a mixture as one MLP with the neurons of all experts. transformers stacks them in two parameters.

Neuron i of expert e is number e · I + i. After compensation each expert has its own output bias.
Legend: E experts · I neurons of one expert · H hidden size · T tokens · K experts that a token is sent to · R tokens
routed to one expert.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flap.models.adapter import Block, split
from flap.models.offload import onloaded

KERNEL_MULTIPLE = 8  # the grouped kernel takes experts whose number of neurons is a multiple of it, in any dtype


@dataclass(frozen=True)
class GateUp:
    """The gate and up projections of all experts as one Linear; for each expert the rows of gate, then those of up."""

    experts: Any

    @property
    def weight(self) -> Tensor:
        """The weights (E · 2I, H)."""
        return cast(Tensor, self.experts.gate_up_proj).flatten(0, 1)

    @property
    def bias(self) -> None:
        """None: these projections have no bias."""
        return None

    @property
    def out_features(self) -> int:
        """The number of rows, E · 2I."""
        return self.weight.shape[0]

    def assign(self, weight: Tensor, bias: None) -> None:
        """Replace the weights; every expert must get the same number of rows."""
        _assign(self.experts, "gate_up_proj", weight.unflatten(0, (self.experts.num_experts, -1)))


@dataclass(frozen=True)
class Down:
    """The down projections of all experts as one Linear from all neurons."""

    experts: Any

    @property
    def weight(self) -> Tensor:
        """The weights (H, E · I)."""
        return cast(Tensor, self.experts.down_proj).transpose(0, 1).flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """bias_EH, one bias an expert; None before compensation."""
        return getattr(self.experts, "down_proj_bias", None)

    @property
    def in_features(self) -> int:
        """The number of columns, E · I."""
        return self.weight.shape[1]

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights, the same number of columns for every expert, and the output biases."""
        _assign(self.experts, "down_proj", weight.unflatten(1, (self.experts.num_experts, -1)).transpose(0, 1))
        if bias is not None:
            _assign(self.experts, "down_proj_bias", bias)


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """All experts of a layer as one block. Its units are neurons; every expert must keep the same number of them."""

    output: Down

    @property
    def num_experts(self) -> int:
        """The number of experts."""
        return int(self.output.experts.num_experts)

    @property
    def chosen_experts(self) -> int:
        """The number of experts that a token is sent to."""
        return int(self.output.experts.config.num_experts_per_tok)

    @property
    def watched(self) -> nn.Module:
        """The module that holds all experts."""
        return cast(nn.Module, self.output.experts)

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """Return the inputs of each expert's down projection for the tokens routed to it, whatever kernel is used."""
        experts, (hidden_TH, chosen_TK, _) = self.output.experts, args
        # sorted by expert, so that the device is waited for once a batch and not once an expert
        order = chosen_TK.flatten().argsort(stable=True)
        counts_E = torch.bincount(chosen_TK.flatten(), minlength=self.num_experts).tolist()
        routed = hidden_TH[order // chosen_TK.shape[1]].split(counts_E)
        with onloaded(experts):
            gate_up = [tokens_RH @ experts.gate_up_proj[e].T for e, tokens_RH in enumerate(routed)]
        return [experts.act_fn(gate) * up for gate, up in (both.chunk(2, dim=-1) for both in gate_up)]


def experts_block(name: str, experts: Any) -> ExpertsBlock:
    """Return the block of a layer's experts: a module with gate_up_proj (E, 2I, H) and down_proj (E, H, I)."""
    num_experts, _, neurons = experts.down_proj.shape
    columns_UC = split(num_experts * neurons, num_experts * neurons)
    gate_EI = 2 * neurons * torch.arange(num_experts)[:, None] + torch.arange(neurons)
    rows_UR = torch.stack([gate_EI, gate_EI + neurons], dim=-1).flatten(0, 1)
    return ExpertsBlock(name, Down(experts), columns_UC, ((GateUp(experts), rows_UR),))


def add_output_biases(experts: Any, args: tuple[Any, ...], output_TH: Tensor) -> Tensor:
    """Add Σ_k weight_k · bias of expert k to the output of the experts. A forward hook; it works with any kernel."""
    _, chosen_TK, weight_TK = args
    with onloaded(experts):
        bias_TH: Tensor = (weight_TK[..., None] * experts.down_proj_bias[chosen_TK]).sum(1)
    return output_TH + bias_TH.to(output_TH.dtype)


def _assign(experts: nn.Module, name: str, tensor: Tensor) -> None:
    trainable = cast(Any, experts).down_proj.requires_grad
    experts.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=trainable))


def _adds_biases(experts: Any) -> bool:
    """Return whether the biases are added already: by the hook, or by the class of a reloaded checkpoint."""
    names = {cls.__name__ for cls in type(experts).__mro__}
    return add_output_biases in experts._forward_hooks.values() or "BiasedExpertsMixin" in names


def experts_fit_kernel(mlp: Block) -> bool:
    """Return whether the grouped kernel can run the experts of this block; true for a plain MLP, which needs none."""
    return mlp.num_experts == 1 or mlp.num_units // mlp.num_experts % KERNEL_MULTIPLE == 0


def refresh_experts(experts: Any) -> None:
    """Update the width after the tensors have changed, and choose the kernel.

    torch's grouped kernel needs rows of a multiple of 16 bytes; at other widths the experts run one after another.
    """
    if hasattr(experts, "down_proj_bias") and not _adds_biases(experts):
        experts.register_forward_hook(add_output_biases)
    experts.intermediate_dim = experts.down_proj.shape[2]
    if experts.intermediate_dim % KERNEL_MULTIPLE:
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation = "eager"
