"""What the divergence changes by if a unit changes sides: backward passes through the pruned model.

Legend: N windows · T tokens of all windows · P positions · V vocabulary · D hidden size · O output, I input channels of
a block · U units of C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import linear

from flap.models import Block, ModelAdapter, PlacedModel
from flap.models.forward import final_states
from flap.models.replaced_forward import forwards_replaced
from flap.search.residuals import Residuals

LOGITS_BYTES = 2**26  # of a chunk of positions, in float32


@dataclass
class BlockEffects:
    """A block of which all units are computed and some are kept, and the effects of its units over tokens.

    The effect of unit u at a token is g · S_u r_u (`Residuals`), where g is a gradient at the output of the block. With
    that of the divergence it is what the divergence changes by, to first order, if the kept set with u takes the place
    of the one without it; the mean of its square with the gradient of − log q(y), for words y that are drawn from the
    pruned model's own predictions q, is the second derivative (the Fisher information, token by token).
    """

    block: Block
    covariance_II: Tensor  # with the ridge on its diagonal
    mean_I: Tensor
    kept_U: Tensor
    sums: dict[str, Tensor] = field(init=False)  # over tokens, of effects, their squares, and of the second derivative
    drawn: bool = field(init=False, default=False)  # whether the gradient is that of drawn words

    def __post_init__(self) -> None:
        self.fit(self.kept_U)

    def fit(self, kept_U: Tensor) -> None:
        """Keep these units, with least squares in place of the others; nothing is known of their effects."""
        self.kept_U, output = kept_U, self.block.output.weight
        columns_UC, mask_U = self.block.columns_UC.to(output.device), kept_U.to(output.device)
        fits = Residuals.of(output.float(), self.covariance_II, self.mean_I, columns_UC, mask_U)
        maps = fits.weight_OI, fits.map_II, fits.slope_OI
        self.weight_OI, self.map_II, self.slope_OI = (one.to(output.dtype) for one in maps)
        bias_O = fits.bias_O if self.block.output.bias is None else fits.bias_O + self.block.output.bias.float()
        self.bias_O = bias_O.to(output.dtype).requires_grad_()  # where the backward passes end
        self.error_U = fits.error_U
        self.sums = {name: torch.zeros_like(fits.error_U) for name in ("effect", "square", "curvature")}

    def __call__(self, input_NTI: Tensor) -> Tensor:
        """Return the output of the block; a backward pass through it adds up effects."""
        output_NTO = linear(input_NTI, self.weight_OI, self.bias_O)
        if output_NTO.requires_grad:
            residual_NTI = linear(input_NTI.detach() - self.mean_I.to(input_NTI.dtype), self.map_II)
            output_NTO.register_hook(lambda gradient_NTO: self._add(residual_NTI, gradient_NTO))
        return output_NTO

    def _add(self, residual_NTI: Tensor, gradient_NTO: Tensor) -> None:
        of_channels_TI = (residual_NTI * (gradient_NTO @ self.slope_OI)).flatten(end_dim=-2).float()
        effect_TU = of_channels_TI[:, self.block.columns_UC].sum(dim=-1)
        if self.drawn:
            self.sums["curvature"] += effect_TU.square().sum(dim=0)
        else:
            self.sums["effect"] += effect_TU.sum(dim=0)
            self.sums["square"] += effect_TU.square().sum(dim=0)


@contextmanager
def pruned_by(blocks: Sequence[BlockEffects]) -> Iterator[None]:
    """Let the model run as pruned inside the block, with all units computed."""
    with forwards_replaced([one.block.watched for one in blocks], lambda k, input_NTI: blocks[k](input_NTI)):
        yield


def add_effects(model: PlacedModel, blocks: Sequence[BlockEffects], tokens_NT: Tensor) -> None:
    """Add the effects of all units over a batch of windows. No parameter of the model may require a gradient."""
    with torch.no_grad():
        dense_PD = final_states(model.adapter, tokens_NT)
    with pruned_by(blocks), torch.enable_grad():
        hidden_PD = final_states(model.adapter, tokens_NT)
        gradients = _gradients(model.adapter, dense_PD, hidden_PD.detach(), int(tokens_NT.sum()))
        for drawn, gradient_PD in enumerate(gradients):
            for one in blocks:
                one.drawn = bool(drawn)
            hidden_PD.backward(gradient_PD, retain_graph=not drawn)


def _gradients(adapter: ModelAdapter, dense_PD: Tensor, hidden_PD: Tensor, seed: int) -> list[Tensor]:
    """Return the gradients at the final hidden states of Σ KL(p ‖ q), and of − Σ log q(y) for words y drawn from q.

    At the logits they are q − p, and q less 1 at y.
    """
    generator = torch.Generator(hidden_PD.device).manual_seed(seed)
    positions, parts = max(1, LOGITS_BYTES // (4 * adapter.vocab_size)), []
    for dense, hidden in zip(dense_PD.split(positions), hidden_PD.split(positions), strict=True):
        hidden = hidden.requires_grad_()
        logits_PV = adapter.logits(hidden)
        with torch.no_grad():
            p_PV, q_PV = (logits.float().softmax(dim=-1) for logits in (adapter.logits(dense), logits_PV))
            drawn_PV = torch.zeros_like(q_PV).scatter_(1, q_PV.multinomial(1, generator=generator), 1)
            differences = torch.stack([q_PV - p_PV, q_PV - drawn_PV]).to(logits_PV.dtype)
        parts.append(torch.autograd.grad(logits_PV, hidden, differences, is_grads_batched=True)[0])
    return list(torch.cat(parts, dim=1))
