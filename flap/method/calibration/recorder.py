"""Recorders of the statistics at a layer, by forward hooks inside a `with` block.

Legend: I input channels of an output projection · T tokens · D hidden size · M members of a block.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
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
from flap.storage import ranks


class Comoments:
    """The sums of products of the deviations of two channels from their means.

    Products are summed about a fixed origin, the mean of the first batch, and shifted to the mean at the end: exact in
    real numbers, and well-conditioned as long as a batch's mean is within a few deviations of the mean.
    """

    def __init__(self) -> None:
        self._products: Symmetric | None = None
        self._origin_I: Tensor | None = None

    def add(self, activation: Tensor, about_zero: bool = False) -> None:
        """Add a batch of activations (…, I). about_zero: the origin is zero: tokens with zeros need not be added."""
        activation_TI = activation.flatten(end_dim=-2).float()
        if self._products is None:
            self._products = Symmetric.zeros(activation.shape[-1], activation.device)
        if not len(activation_TI):
            return
        if self._origin_I is None:
            self._origin_I = (
                torch.zeros_like(activation_TI[0]) if about_zero else activation_TI.mean(0)
            )
        self._products.add_products(activation_TI - self._origin_I)

    def finish(self, num_tokens: int, mean_I: Tensor) -> Symmetric:
        """Return the co-moments. num_tokens, mean_I: of all tokens."""
        assert self._products is not None
        if self._origin_I is not None:
            shift_I = mean_I - self._origin_I.to(widest_float(mean_I.device))
            self._products.add_outer((shift_I * num_tokens).float(), shift_I.float(), alpha=-1)
        return self._products


class BlockRecorder:
    """A forward pre-hook that merges the statistics of the inputs of output projections, of each member of a block.

    It also sums the squares of the router's weights of the members, where there is a router.
    """

    def __init__(self, adapter: ModelAdapter, block: Block, covariance: bool) -> None:
        self.adapter = adapter
        self.block = block
        self.comoments = [Comoments() for _ in block.members] if covariance else []
        self.statistics: list[Statistics] = []
        self.routed: list[Statistics] = []  # of members that are removed whole
        self.routed_M: Tensor | float = 0.0
        self.num_routed = 0  # tokens

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        seen = self.block.observe(args, self.adapter.counted_P)
        self.statistics = _merged(self.statistics, seen.activations, seen.num_tokens)
        self.routed = _merged(self.routed, seen.routed)
        if self.comoments:
            for comoments, activation in zip(self.comoments, seen.activations, strict=True):
                comoments.add(activation, about_zero=seen.num_tokens is not None)
        if (weight_TM := seen.weight_TM) is not None:
            self.routed_M = self.routed_M + weight_TM.square().to(
                widest_float(weight_TM.device)
            ).sum(dim=0)
            self.num_routed += len(weight_TM)

    def finish(self) -> tuple[Statistics, ...]:
        """Return the statistics of all recorded tokens.

        Raises:
            ValueError: they are not finite; names the block.
        """
        if self.comoments and self.statistics:
            pairs = zip(self.statistics, self.comoments, strict=True)
            self.statistics = [
                replace(one, comoments=sums.finish(one.num_tokens, one.mean_I))
                for one, sums in pairs
            ]
        self.comoments = []
        self.statistics = merged_over_ranks(self.statistics, self.block.output.weight.device)
        assert self.statistics, f"{self.block.name} saw no token"
        # |co-moment| of two channels is at most the larger of their squares: if the diagonal is finite, all are
        squares = [one.deviation_I for one in self.statistics]
        squares += [
            one.comoments.diagonal() for one in self.statistics if one.comoments is not None
        ]
        if not torch.isfinite(torch.cat(squares)).all():
            raise ValueError(
                f"calibration: activations of {self.block.name} are not finite; try model.dtype=float32 or bfloat16, "
                "or check the weights"
            )
        return tuple(self.statistics)


def _merged(
    before: list[Statistics], batch: Iterable[Tensor], num_tokens: int | None = None
) -> list[Statistics]:
    """Return the statistics of each member with those of a batch. num_tokens: see `batch_statistics`."""
    batches = [batch_statistics(activation, num_tokens) for activation in batch]
    return list(map(merge, before, batches)) if before else batches


class ResidualRecorder:
    """A forward pre-hook of a decoder layer that sums 1 / ‖h_t‖² over the tokens t of its input hidden states h."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self.total: Tensor | float = 0.0
        self.num_tokens: Tensor | int = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        hidden_TD = args[0].flatten(end_dim=-2).float()
        if self.adapter.counted_P is not None:
            hidden_TD = hidden_TD[self.adapter.counted_P]
        inverse_T = torch.linalg.vector_norm(hidden_TD, dim=-1).square().reciprocal()
        finite_T = torch.isfinite(
            inverse_T
        )  # not where h_t is zero: an error relative to it is not defined
        self.total = (
            self.total
            + torch.where(finite_T, inverse_T, 0.0).to(widest_float(inverse_T.device)).sum()
        )
        self.num_tokens = self.num_tokens + finite_T.sum()


class LayerRecorder(ExitStack):
    """Records the hidden states that enter a layer, and what its two blocks get, inside a `with` block."""

    def __init__(self, adapter: ModelAdapter, layer: int, covariance: bool = False) -> None:
        super().__init__()
        self.layer = adapter.layers[layer]
        self.blocks = Pair(
            *(BlockRecorder(adapter, block, covariance) for block in adapter.blocks(layer))
        )
        self.residual = ResidualRecorder(adapter)

    def __enter__(self) -> "LayerRecorder":
        for recorder in self.blocks:
            self.enter_context(recorder.block.watched.register_forward_pre_hook(recorder))
        self.enter_context(self.layer.register_forward_pre_hook(self.residual))
        return self


def layer_statistics(*recorders: LayerRecorder) -> LayerStatistics:
    """Return the statistics of a layer from the recorder of all windows, or those of fitting and held-out windows.

    The co-moments of two recorders stay separate, in `Statistics.parts`.

    Raises:
        ValueError: they are not finite; names the block.
    """
    by_block = zip(*(recorder.blocks for recorder in recorders), strict=True)
    blocks = Pair(
        *(tuple(map(_of_parts, *(part.finish() for part in parts))) for parts in by_block)
    )
    power = inverse_power([one.residual for one in recorders])
    mlps = [one.blocks.mlp for one in recorders]
    routed = [merged_over_ranks(one.routed, one.block.output.weight.device) for one in mlps]
    by_expert = zip(*filter(None, routed), strict=True)  # held-out windows may have none
    return LayerStatistics(
        blocks, power, routed_power(mlps), tuple(reduce(merge, parts) for parts in by_expert)
    )


def _of_parts(*parts: Statistics) -> Statistics:
    if len(parts) == 1:
        return parts[0]
    fitting, held_out = parts
    return replace(merge(fitting, held_out), parts=(fitting, held_out))


def routed_power(recorders: Sequence[BlockRecorder]) -> tuple[float, ...]:
    """Return E[w_m²] of each member m over all recorded tokens, in float32 precision; empty without a router.

    w_m is the router's weight of the member's output, 0 for a token that is sent to others. E[w_m²] · E‖e‖² is the
    squared error of the layer's output that an error e of the member's output makes, if it is independent of w_m.
    """
    own = [
        (one.num_routed, one.routed_M.cpu())
        for one in recorders
        if isinstance(one.routed_M, Tensor)
    ]
    seen = list(chain(*ranks.gather(own)))  # of all processes
    if not (num_tokens := sum(count for count, _ in seen)):
        return ()
    total_M = torch.as_tensor(sum(one_M for _, one_M in seen))
    return tuple((total_M / num_tokens).float().tolist())


def inverse_power(recorders: Sequence[ResidualRecorder]) -> float:
    """Return E[1 / ‖h_t‖²] over all recorded tokens, in float32 precision; 0 if every hidden state is zero.

    E‖e‖² · E[1 / ‖h‖²] is the squared error of a block's output relative to the residual stream of an ordinary token.
    E‖e‖² / E‖h‖² is not: a few tokens, mostly the first of a window, have massive activations that later layers only
    pass on, so that E‖h‖² can be 240 times its value over the other tokens (layer 12 of SmolLM2-135M).
    """
    sums = chain(*ranks.gather([(float(r.total), int(r.num_tokens)) for r in recorders]))
    total, num_tokens = map(sum, zip(*sums, strict=True))
    return torch.tensor(total / max(num_tokens, 1), dtype=torch.float32).item()
