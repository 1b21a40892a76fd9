"""Fitting the output projections of a layer for one or more plans; each member of a block is fitted by itself.

Legend: O output channels · I input channels · K kept, P pruned channels · U units.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flap.method.allocation import LayerPlan
from flap.method.calibration import LayerStatistics, Statistics
from flap.method.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.models import Block, Pair
from flap.storage import ranks


class BlockFit(NamedTuple):
    """The new output projection of a block, in the model's dtype, and the reports of its fits by their names."""

    weight_OK: Tensor
    bias_O: Tensor | None
    reports: dict[str, FitReport]


Kept = tuple[int, ...]  # units of a block


@torch.no_grad()
def fit_layer(
    blocks: Pair[Block],
    plans: Sequence[LayerPlan],
    compensation: Compensation,
    statistics: LayerStatistics | None,
    trial: bool = False,
) -> list[Pair[BlockFit | None]]:
    """Return the fits of a layer for several plans; None for a block that keeps all its units.

    trial: see `Compensation.fits`.
    """
    by_block = statistics.blocks if statistics else Pair[Sequence[Statistics]]((), ())
    blocks_to_fit = []
    for block, observed, choices in zip(blocks, by_block, zip(*plans, strict=True), strict=True):
        pruning = sorted({kept for kept in choices if len(kept) < block.num_units})
        blocks_to_fit.append(
            (block, pruning, _member_fits(block, pruning, compensation, observed, trial))
        )
    makes = [make for *_, of_block in blocks_to_fit for make in of_block]
    made = (
        (make() for make in makes) if trial else iter(ranks.each_by_one(makes))
    )  # each process has trials of its own
    by_plan = [
        _by_plan(block, pruning, [next(made) for _ in of_block])
        for block, pruning, of_block in blocks_to_fit
    ]
    return [
        Pair(*(fits.get(kept) for fits, kept in zip(by_plan, plan, strict=True))) for plan in plans
    ]


def _member_fits(
    block: Block,
    plans: Sequence[Kept],
    compensation: Compensation,
    statistics: Sequence[Statistics],
    trial: bool,
) -> list[Callable[[], list[Fit]]]:
    """Return what fits each member of a block for several sets of kept units, on its own channels and tokens."""
    if not plans or block.whole:
        return []
    removals = zip(*(_removals(block, kept) for kept in plans), strict=True)
    inputs: Sequence[Statistics | None] = statistics or [None] * len(block.members)
    columns = zip(block.members, inputs, removals, strict=True)
    return [
        partial(_fit, compensation, member, observed, removed, trial)
        for member, observed, removed in columns
    ]


def _fit(
    compensation: Compensation,
    member: Block,
    statistics: Statistics | None,
    removals: Sequence[Removal],
    trial: bool,
) -> list[Fit]:
    weight_OI = member.output.weight.float()
    return compensation.fits(
        weight_OI, statistics and statistics.to(weight_OI.device), removals, trial
    )


def _by_plan(
    block: Block, plans: Sequence[Kept], fits: Sequence[Sequence[Fit]]
) -> dict[Kept, BlockFit]:
    """Return the fit of a block for each set of kept units. fits: of each member; none of whole experts."""
    members = block.members
    if block.whole:
        return {
            kept: _joined([(members[m], Fit(members[m].output.weight, None)) for m in kept])
            for kept in plans
        }
    columns = zip(plans, zip(*fits, strict=True), strict=True)
    return {
        kept: _joined(list(zip(members, of_members, strict=True))) for kept, of_members in columns
    }


def _removals(block: Block, kept: tuple[int, ...]) -> list[Removal]:
    """Return what a plan removes from each member."""
    stays_I = torch.zeros(block.columns_UC.numel(), dtype=torch.bool)
    stays_I[block.columns_UC[torch.tensor(kept, dtype=torch.int64)].flatten()] = True
    members = block.members
    device = members[0].output.weight.device
    masks = ((part_I, ~part_I) for part_I in stays_I.chunk(len(members)))
    return [Removal(*(mask_I.nonzero().flatten().to(device) for mask_I in pair)) for pair in masks]


def _joined(fits: Sequence[tuple[Block, Fit]]) -> BlockFit:
    """Return the fit of a block from the fits of its members, whose weights and biases are side by side."""
    weights = [fit.weight_OK.to(member.output.weight) for member, fit in fits]  # type and device
    biases = [_bias(member.output, fit.bias_O) for member, fit in fits]
    bias_O = None if biases[0] is None else torch.cat([bias for bias in biases if bias is not None])
    reports = {member.name: fit.report for member, fit in fits if fit.report is not None}
    return BlockFit(torch.cat(weights, dim=1), bias_O, reports)


def _bias(output: Any, added_O: Tensor | None) -> Tensor | None:
    if added_O is None:
        return cast(Tensor | None, output.bias)
    added_O = added_O.to(output.weight.device)  # another process may have sent it
    return (added_O if output.bias is None else output.bias.float() + added_O).to(
        output.weight.dtype
    )
