"""Fit the output projections of a layer for one or more plans.

A plan lists the units (heads, neurons or experts) that stay. A fit is an output projection that a
compensation has changed to make up for removed channels. A block is the attention or the MLP of a
layer. The members of an MLP with experts are its experts; every other block has a single member,
the block itself. Each member is fitted separately, on the tokens that reach this member. The option
structure=search runs trials: a trial prunes one block, and measures the effect on the model's
predictions.

Legend of tensor suffixes: O: output channels · I: input channels · K: kept input channels ·
P: removed input channels · U: units · C: input channels of a unit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flap.method.allocation import LayerPlan
from flap.method.calibration import LayerStatistics, Statistics
from flap.method.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.models import Block, Pair
from flap.runtime import ranks


class BlockFit(NamedTuple):
    """The fitted output projection of a block."""

    weight_OK: Tensor  # new weight, with columns only for kept channels, in the dtype of the model
    bias_O: Tensor | None  # new bias, in the dtype of the model; None if there is no bias
    reports: dict[str, FitReport]  # the errors of the fit of each member, by the member's name


Kept = tuple[int, ...]  # indices of the kept units of a block


@torch.no_grad()
def fit_layer(
    blocks: Pair[Block],
    plans: Sequence[LayerPlan],
    compensation: Compensation,
    statistics: LayerStatistics | None,
    trial: bool = False,
) -> list[Pair[BlockFit | None]]:
    """Return, for each of several plans, the fits of the attention and of the MLP of a layer.

    The fit of a block that keeps all of its units is None.

    trial: whether the fits are only for a trial of structure=search, which prunes one block to
        measure the effect (`Compensation.fits`).
    """
    inputs = Pair[Sequence[Statistics]]((), ())
    if statistics is not None:
        inputs = Pair(*statistics.blocks)

    # 1. for each block, collect the distinct sets of kept units, except the set of all units
    removing = []
    for block, choices in zip(blocks, zip(*plans, strict=True), strict=True):
        removing.append(sorted({kept for kept in choices if len(kept) < block.num_units}))

    # 2. for each member of each block, make a function that fits the member for each of these sets
    fitters = [
        _member_fitters(block, sets, compensation, observed, trial)
        for block, sets, observed in zip(blocks, removing, inputs, strict=True)
    ]
    every = list(chain(*fitters))
    # In trials, each process has different plans, so each process computes all fits for its plans.
    # Otherwise, all processes have the same plan, and divide the fits among themselves.
    fits = [fitter() for fitter in every] if trial else ranks.each_by_one(every)

    # 3. join the fits of the members of each block into a fit of the block
    heads = len(fitters[0])
    attention_fits = _block_fits(blocks.attention, removing[0], fits[:heads])
    mlp_fits = _block_fits(blocks.mlp, removing[1], fits[heads:])
    return [Pair(attention_fits.get(plan.attention), mlp_fits.get(plan.mlp)) for plan in plans]


def _member_fitters(
    block: Block,
    kept_sets: Sequence[Kept],
    compensation: Compensation,
    statistics: Sequence[Statistics],
    trial: bool,
) -> list[Callable[[], list[Fit]]]:
    """Return, for each member of a block, a function that fits it once per set of kept units.

    If the units are whole experts, nothing is fitted, and the list is empty.
    """
    if not kept_sets or block.whole:
        return []
    by_set = [_member_removals(block, kept) for kept in kept_sets]
    inputs: Sequence[Statistics | None] = statistics or [None] * len(block.members)
    return [
        partial(_fit_member, compensation, member, observed, removals, trial)
        for member, observed, removals in zip(
            block.members, inputs, zip(*by_set, strict=True), strict=True
        )
    ]


def _fit_member(
    compensation: Compensation,
    member: Block,
    statistics: Statistics | None,
    removals: Sequence[Removal],
    trial: bool,
) -> list[Fit]:
    weight_OI = member.output.weight.float()
    if statistics is not None:
        statistics = statistics.to(weight_OI.device)
    return compensation.fits(weight_OI, statistics, removals, trial)


def _member_removals(block: Block, kept: Kept) -> list[Removal]:
    stays_I = torch.zeros(block.columns_UC.numel(), dtype=torch.bool)
    stays_I[block.columns_UC[torch.tensor(kept, dtype=torch.int64)].flatten()] = True
    device = block.members[0].output.weight.device
    removals = []
    for stays in stays_I.chunk(len(block.members)):
        kept_K = stays.nonzero().flatten().to(device)
        pruned_P = (~stays).nonzero().flatten().to(device)
        removals.append(Removal(kept_K, pruned_P))
    return removals


def _block_fits(
    block: Block, kept_sets: Sequence[Kept], fits: Sequence[Sequence[Fit]]
) -> dict[Kept, BlockFit]:
    """Return the fit of a block for each set of kept units.

    fits: for each member, one fit for each set of kept units. If the units are whole experts,
        `fits` is empty, because the weights of the kept experts do not change.
    """
    block_fits = {}
    for k, kept in enumerate(kept_sets):
        if block.whole:
            members = [block.members[m] for m in kept]
            member_fits = [Fit(member.output.weight, None) for member in members]
        else:
            members = list(block.members)
            member_fits = [of_sets[k] for of_sets in fits]
        block_fits[kept] = _join_member_fits(members, member_fits)
    return block_fits


def _join_member_fits(members: Sequence[Block], fits: Sequence[Fit]) -> BlockFit:
    weights = []
    biases = []
    reports = {}
    for member, fit in zip(members, fits, strict=True):
        # convert the fitted weight to the dtype and device of the old weight
        weights.append(fit.weight_OK.to(member.output.weight))
        bias_O = _bias(member.output, fit.bias_O)
        if bias_O is not None:
            biases.append(bias_O)
        if fit.report is not None:
            reports[member.name] = fit.report
    return BlockFit(torch.cat(weights, dim=1), torch.cat(biases) if biases else None, reports)


def _bias(output: Any, added_O: Tensor | None) -> Tensor | None:
    if added_O is None:
        return cast(Tensor | None, output.bias)
    # another process may have computed `added_O` on another device
    bias_O = added_O.to(output.weight.device)
    if output.bias is not None:
        bias_O = output.bias.float() + bias_O
    return bias_O.to(output.weight.dtype)
