"""Record the statistics of a layer with forward hooks, inside a `with` statement.

A block is the attention or the MLP of a layer. In a mixture of experts, the members of the MLP are
its experts. Every fifth calibration window is held out. The held-out windows are used to test
compensations, which change output projections to make up for removed units (heads, neurons or
experts). With structure=search, these windows are also used to measure the effect of pruning a
single block. The tokens of held-out windows are called held-out tokens. The tokens of all other
windows are called fitting tokens. `Comoments` defines the co-moment of two channels.

Legend: I: input channels of an output projection · T: tokens · P: positions of a batch · D: hidden
size · M: members of a block · E[…]: mean over tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flap.method.calibration.statistics import (
    LayerStatistics,
    Statistics,
    batch_statistics,
    merge,
    merged_over_ranks,
)
from flap.method.calibration.symmetric import Symmetric
from flap.models import Block, ModelAdapter, Pair
from flap.models.devices import widest_float
from flap.runtime import ranks


class Comoments:
    """Collects the co-moment of each pair of channels.

    A co-moment is the sum, over tokens, of the product of the deviations of both channels.
    Deviations are differences from the mean of all tokens. This mean is not known while batches are
    added. So products of differences from a fixed origin are summed at first. The origin is the
    mean of the first batch, or zero. At the end, the sums are corrected for the difference between
    the origin and the mean of all tokens. Rounding errors are small if the origin is within a few
    standard deviations of this mean.
    """

    def __init__(self) -> None:
        self._products: Symmetric | None = None
        self._origin_I: Tensor | None = None

    def add(self, activation: Tensor, about_zero: bool = False) -> None:
        """Add a batch of activations (…, I).

        about_zero: whether the origin is zero instead of the mean of the first batch. If so, tokens
            whose activations are all zero can be left out of the batch.
        """
        activation_TI = activation.flatten(end_dim=-2).float()
        if self._products is None:
            self._products = Symmetric.zeros(activation.shape[-1], activation.device)
        if not len(activation_TI):
            return
        if self._origin_I is None:
            zeros_I = torch.zeros_like(activation_TI[0])
            self._origin_I = zeros_I if about_zero else activation_TI.mean(0)
        self._products.add_products(activation_TI - self._origin_I)

    def finish(self, num_tokens: int, mean_I: Tensor) -> Symmetric:
        """Return the co-moments: sums of products of deviations from the mean of all tokens.

        num_tokens, mean_I: the number of all tokens, and the mean of their activations.
        """
        assert self._products is not None
        if self._origin_I is not None:
            shift_I = mean_I - self._origin_I.to(widest_float(mean_I.device))
            self._products.add_outer((shift_I * num_tokens).float(), shift_I.float(), alpha=-1)
        return self._products


class BlockRecorder:
    """Collects statistics of the inputs of a block's output projections.

    Each member of the block has separate statistics. If the block has a router, the squares of the
    weights that the router gives each member are also summed over tokens.
    """

    def __init__(self, block: Block, covariance: bool) -> None:
        self.block = block
        self.comoments = [Comoments() for _ in block.members] if covariance else []
        self.statistics: list[Statistics] = []
        # if units are whole experts, the statistics of each expert over the tokens of this process
        # that are routed to it (`LayerStatistics.routed`); otherwise empty
        self.routed: list[Statistics] = []
        # for each member, the sum over tokens of the router's squared weights for this member
        self.routed_M: Tensor | float = 0.0
        self.num_routed = 0  # number of tokens that the router has seen

    def record(self, mask_P: Tensor | None, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Record a batch. This method is a forward pre-hook of the module `Block.watched`.

        mask_P: a boolean mask of the positions to record; None records all positions.
        """
        seen = self.block.observe(args, mask_P)
        self.statistics = _merged(self.statistics, seen.activations, seen.num_tokens)
        self.routed = _merged(self.routed, seen.routed)
        if self.comoments:
            for comoments, activation in zip(self.comoments, seen.activations, strict=True):
                comoments.add(activation, about_zero=seen.num_tokens is not None)
        if seen.weight_TM is not None:
            square_TM = seen.weight_TM.square().to(widest_float(seen.weight_TM.device))
            self.routed_M = self.routed_M + square_TM.sum(dim=0)
            self.num_routed += len(square_TM)

    def finish(self) -> tuple[Statistics, ...]:
        """Return the statistics of each member over the recorded tokens of all processes.

        Raises:
            ValueError: activations are not finite. The message names their block.
        """
        if self.statistics:
            for n, comoments in enumerate(self.comoments):
                member = self.statistics[n]
                finished = comoments.finish(member.num_tokens, member.mean_I)
                self.statistics[n] = replace(member, comoments=finished)
        self.comoments = []
        self.statistics = merged_over_ranks(self.statistics, self.block.output.weight.device)
        assert self.statistics, f"{self.block.name} saw no token"
        squares = [member.deviation_I for member in self.statistics]
        for member in self.statistics:
            # A co-moment of two channels is at most as large as the larger of their two diagonal
            # elements. So all co-moments are finite if the diagonal is finite.
            if member.comoments is not None:
                squares.append(member.comoments.diagonal())
        if not torch.isfinite(torch.cat(squares)).all():
            raise ValueError(
                f"calibration: activations of {self.block.name} are not finite; try "
                "model.dtype=float32 or bfloat16, or check the weights"
            )
        return tuple(self.statistics)


def _merged(
    before: list[Statistics], batch: Iterable[Tensor], num_tokens: int | None = None
) -> list[Statistics]:
    """Merge the activations of a batch into the statistics of each member, and return the result.

    before: the statistics of the earlier batches; empty before the first batch.
    batch: the activations of the batch, one tensor per member.
    num_tokens: the number of all tokens of the batch, if `batch` lacks the tokens whose activations
        are all zero; None if `batch` has all tokens.
    """
    of_batch = [batch_statistics(activation, num_tokens) for activation in batch]
    return list(map(merge, before, of_batch)) if before else of_batch


class ResidualRecorder:
    """Sums 1 / ‖h_t‖² over tokens t. h_t is the input of a decoder layer at token t."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.num_tokens: Tensor | int = 0

    def record(self, mask_P: Tensor | None, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Record a batch. This method is a forward pre-hook of the layer.

        mask_P: a boolean mask of the positions to record; None records all positions.
        """
        hidden_TD = args[0].flatten(end_dim=-2).float()
        if mask_P is not None:
            hidden_TD = hidden_TD[mask_P]
        inverse_T = torch.linalg.vector_norm(hidden_TD, dim=-1).square().reciprocal()
        # Tokens with h_t = 0 are left out, because 1 / ‖h_t‖² is infinite for them.
        finite_T = torch.isfinite(inverse_T)
        inverse_T = torch.where(finite_T, inverse_T, 0.0).to(widest_float(inverse_T.device))
        self.total = self.total + inverse_T.sum()
        self.num_tokens = self.num_tokens + finite_T.sum()


class LayerRecorder:
    """Records statistics of the input of a layer, and of the inputs of its output projections."""

    def __init__(self, adapter: ModelAdapter, layer: int, covariance: bool = False) -> None:
        self.layer = adapter.layers[layer]
        attention, mlp = adapter.blocks(layer)
        self.blocks = Pair(
            BlockRecorder(attention, covariance),
            BlockRecorder(mlp, covariance),
        )
        self.residual = ResidualRecorder()

    @contextmanager
    def recording(self, mask_P: Tensor | None) -> Iterator[None]:
        """Record the batch that runs inside the `with` statement.

        mask_P: a boolean mask of the positions to record; None records all positions.
        """
        hooks = [self.layer.register_forward_pre_hook(partial(self.residual.record, mask_P))]
        for recorder in self.blocks:
            watched = recorder.block.watched
            hooks.append(watched.register_forward_pre_hook(partial(recorder.record, mask_P)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def layer_statistics(*recorders: LayerRecorder) -> LayerStatistics:
    """Return the statistics of a layer from one or two recorders.

    A single recorder has seen all windows. With two recorders, the first has seen the fitting
    windows, and the second has seen the held-out windows. In this case, `Statistics.parts` contains
    the statistics of each recorder, with co-moments.

    Raises:
        ValueError: activations are not finite. The message names their block.
    """
    attentions = [recorder.blocks.attention for recorder in recorders]
    mlps = [recorder.blocks.mlp for recorder in recorders]
    blocks = Pair(_member_statistics(attentions), _member_statistics(mlps))
    power = inverse_power([recorder.residual for recorder in recorders])
    routed = [merged_over_ranks(mlp.routed, mlp.block.output.weight.device) for mlp in mlps]
    # Leave out recorders without statistics of routed tokens. Only a mixture whose units are whole
    # experts has such statistics.
    by_expert = zip(*filter(None, routed), strict=True)
    merged = tuple(reduce(merge, parts) for parts in by_expert)
    return LayerStatistics(blocks, power, routed_power(mlps), merged)


def _member_statistics(recorders: Sequence[BlockRecorder]) -> tuple[Statistics, ...]:
    finished = [recorder.finish() for recorder in recorders]
    if len(finished) == 1:
        return finished[0]
    members = list[Statistics]()
    for fitting, held_out in zip(*finished, strict=True):
        members.append(replace(merge(fitting, held_out), parts=(fitting, held_out)))
    return tuple(members)


def routed_power(recorders: Sequence[BlockRecorder]) -> tuple[float, ...]:
    """Return the mean square E[w_m²] of the router's weight w_m for each member m of an MLP.

    The mean is taken over all recorded tokens, and rounded to float32.

    The router multiplies the output of member m by w_m, which is 0 for tokens that are not sent to
    m. If the output of the member has an error e that is independent of w_m, the output of the
    layer has the mean squared error E[w_m²] · E[‖e‖²]. If there is no router, the result is empty.
    """
    of_process = list[tuple[int, Tensor]]()
    for recorder in recorders:
        if isinstance(recorder.routed_M, Tensor):
            of_process.append((recorder.num_routed, recorder.routed_M.cpu()))
    of_all = list(chain(*ranks.gather(of_process)))
    num_tokens = sum(count for count, _ in of_all)
    if not num_tokens:
        return ()
    total_M = torch.as_tensor(sum(sums_M for _, sums_M in of_all))
    return tuple((total_M / num_tokens).float().tolist())


def inverse_power(recorders: Sequence[ResidualRecorder]) -> float:
    """Return the mean E[1 / ‖h_t‖²] over the recorded tokens with h_t ≠ 0.

    The mean is rounded to float32. h_t: the input of the layer (the residual stream) at token t. If
    the output of a block has an error e, E[‖e‖²] · E[1 / ‖h‖²] is the squared error relative to the
    residual stream of a typical token. The simpler ratio E[‖e‖²] / E[‖h‖²] would not describe a
    typical token. The reason is that a few tokens, mostly the first token of a window, have massive
    activations, which later layers only pass on. With these tokens, the mean of ‖h‖² can be 240
    times as large as without them (layer 12 of SmolLM2-135M). If every h_t is 0, this function
    returns 0.
    """
    sums = chain(*ranks.gather([(float(r.total), int(r.num_tokens)) for r in recorders]))
    total, num_tokens = map(sum, zip(*sums, strict=True))
    return torch.tensor(total / max(num_tokens, 1), dtype=torch.float32).item()
