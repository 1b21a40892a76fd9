"""Fitting the output projections of a layer for one or more plans; each expert is fitted by itself.

Legend: O output channels · I input channels · K kept, P pruned channels · U units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flap.allocation import LayerPlan
from flap.calibration import LayerStatistics, Statistics
from flap.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.models import Block, Pair


class BlockFit(NamedTuple):
    """The new output projection of a block, in the model's dtype, and the reports of its fits by their names."""

    weight_OK: Tensor
    bias_O: Tensor | None
    reports: dict[str, FitReport]


@torch.no_grad()
def fit_layer(
    blocks: Pair[Block],
    plans: Sequence[LayerPlan],
    compensation: Compensation,
    statistics: LayerStatistics | None,
    trial: bool = False,
) -> list[Pair[BlockFit | None]]:
    """Return the fits of a layer for several plans; None for a block that keeps all its units.

    trial: as of `Compensation.fits`.
    """
    by_block: Pair[Statistics] | tuple[None, None] = statistics.blocks if statistics else (None, None)
    fits = []
    for block, observed, choices in zip(blocks, by_block, zip(*plans, strict=True), strict=True):
        pruning = sorted({kept for kept in choices if len(kept) < block.num_units})
        fitted = dict(zip(pruning, _fit_block(block, pruning, compensation, observed, trial), strict=True))
        fits.append([fitted.get(kept) for kept in choices])
    return [Pair(*pair) for pair in zip(*fits, strict=True)]


def _fit_block(
    block: Block,
    plans: Sequence[tuple[int, ...]],
    compensation: Compensation,
    statistics: Statistics | None,
    trial: bool,
) -> list[BlockFit]:
    """Return the fits of a block for several sets of kept units; each expert's on its own channels and tokens."""
    if not plans:
        return []
    if block.whole_experts:  # the router sends their tokens to others
        return [_kept_experts(block, torch.tensor(kept)) for kept in plans]
    weight_OI, experts = block.output.weight.float(), block.num_experts
    observed = statistics and statistics.to(weight_OI.device)
    by_expert = observed.of_experts(experts) if observed else [None] * experts
    size = weight_OI.shape[1] // experts
    fits = [
        compensation.fits(part_OI, known, [_removal(block, kept, e * size, size) for kept in plans], trial)
        for e, (part_OI, known) in enumerate(zip(weight_OI.chunk(experts, dim=1), by_expert, strict=True))
    ]
    return [_join(block, fits_of_experts) for fits_of_experts in zip(*fits, strict=True)]


def _kept_experts(block: Block, kept_U: Tensor) -> BlockFit:
    """Return the projection of the experts that stay, as it is."""
    output: Any = block.output
    bias_UO = None if output.bias is None else output.bias[kept_U]
    return BlockFit(output.weight[:, block.columns_UC[kept_U].flatten()], bias_UO, {})


def _removal(block: Block, kept: tuple[int, ...], first: int, size: int) -> Removal:
    """Return the removal from the `size` channels from `first` on, counted from there."""
    stays_I = torch.zeros(block.output.weight.shape[1], dtype=torch.bool)
    stays_I[block.columns_UC[torch.tensor(kept, dtype=torch.int64)].flatten()] = True
    part_I = stays_I[first : first + size].to(block.output.weight.device)
    return Removal(part_I.nonzero().flatten(), (~part_I).nonzero().flatten())


def _join(block: Block, fits: Sequence[Fit]) -> BlockFit:
    """Return the fit of a block from those of its experts: weights side by side, and one bias an expert."""
    output: Any = block.output
    weight_OK = torch.cat([fit.weight_OK.to(output.weight.dtype) for fit in fits], dim=1)
    added = [fit.bias_O for fit in fits if fit.bias_O is not None]
    bias_O: Tensor | None = output.bias
    if added:
        added_O = torch.stack(added) if block.is_mixture else added[0]
        bias_O = (added_O if bias_O is None else bias_O.float() + added_O).to(output.weight.dtype)
    names = [f"{block.name} expert {e}" for e in range(len(fits))] if block.is_mixture else [block.name]
    reports = {name: fit.report for name, fit in zip(names, fits, strict=True) if fit.report is not None}
    return BlockFit(weight_OK, bias_O, reports)
