"""Standardise and rank scores, and find the units that can stay within a budget.

A unit is a KV head with its query heads, a neuron of an MLP, or an expert. A block is a group of
units that are removed together. `best_of_each`, `affordable` and `within` can also rank whole
blocks, as if each block were a unit. The members of an MLP are the experts of a mixture, which all
keep the same number of neurons. An MLP without experts has one member. A bound is an upper limit on
a cost of the pruned model, such as its bytes.

Legend: I: neurons · B: blocks · N: neurons of a block · M: members of an MLP · U: units of a
ranking · R: ranks of a member's units · K: kept units; in cost_K, the numbers of units that a layer
can keep (0, 1, 2, …).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def standardise(score: Tensor) -> Tensor:
    """Subtract the mean from all scores, and divide them by their unbiased standard deviation.

    The result is in float64. If all scores are equal, the result is 0 for each score.
    """
    wide = score.double()
    if wide.numel() < 2:
        return torch.zeros_like(wide)
    deviation = wide.std()
    # if the standard deviation is as small as the rounding errors of the scores, return zeros,
    # because otherwise units would be ranked by rounding errors
    if deviation <= 1e-7 * wide.abs().max():
        return torch.zeros_like(wide)
    return (wide - wide.mean()) / deviation


def from_highest(score_U: Tensor) -> Tensor:
    """Return the indices that sort the last dimension from the highest to the lowest score.

    Elements with equal scores keep their order.
    """
    return score_U.argsort(descending=True, stable=True)


def ranked(score_U: Tensor, members: int) -> Tensor:
    """Return the indices of each member's units, from the highest score to the lowest (order_MR).

    Units with equal scores keep their order.
    """
    units = len(score_U) // members
    score_MR = score_U.reshape(members, units)
    start_M = units * torch.arange(members)
    return from_highest(score_MR) + start_M[:, None]


def highest(score_U: Tensor, count: int, members: int = 1) -> tuple[int, ...]:
    """Return the indices of each member's `count` highest-scored units, ascending.

    Among units with equal scores, the units with the lowest indices are taken.
    """
    best_MK = ranked(score_U, members)[:, :count]
    kept, _ = best_MK.flatten().sort()
    return tuple(kept.tolist())


def best_of_each(scores: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return a mask that is true for the `counts[i]` highest-scored units of each layer i.

    The mask has one value for each unit, layer after layer.
    """
    masks = []
    for score_U, count in zip(scores, counts, strict=True):
        best = from_highest(score_U)[:count]
        mask_U = torch.zeros(len(score_U), dtype=torch.bool)
        mask_U[best] = True
        masks.append(mask_U)
    return torch.cat(masks)


def affordable(score_U: Tensor, price_U: Tensor, protected_U: Tensor, to_keep: float) -> Tensor:
    """Return a mask that is true for the units to keep.

    Protected units come first in the ranking, whatever their scores, and are always kept. All other
    units follow, from the highest score to the lowest. The first units of the ranking are kept, and
    their number is chosen so that the sum of their prices is nearest to `to_keep`.

    price_U: the price of each unit, such as its number of parameters.
    """
    order_U = from_highest(score_U.masked_fill(protected_U, torch.inf))
    price_of_prefix_U = price_U[order_U].cumsum(0)
    difference_U = (price_of_prefix_U - to_keep).abs()
    nearest = int(difference_U.argmin())
    protected = int(protected_U.sum())
    size = max(nearest + 1, protected)

    kept_U = torch.zeros(len(score_U), dtype=torch.bool)
    kept_U[order_U[:size]] = True
    return kept_U


def within(
    scores: Sequence[Tensor],
    fewest: Sequence[int],
    costs: Sequence[Sequence[Tensor]],
    most: Sequence[float],
) -> Tensor:
    """Return a mask that is true for the units to keep in all layers, so that all bounds are met.

    Go through the units from the highest score to the lowest. If a unit would make the model exceed
    a bound, remove this unit and all lower-scored units of its layer. Keep all other units.

    scores: the scores of the units of each layer; a layer's attention and MLP count as two layers.
    fewest: the minimum number of units that each layer keeps.
    costs: for each bound and each layer, cost_K with the costs of keeping 0, 1, 2, … units.
    most: for each bound, the highest allowed total cost of all layers.
    """
    # 1. rank the units of all layers; the units that always stay come first
    always_U = best_of_each(scores, fewest)
    order_U = from_highest(torch.cat(list(scores)).masked_fill(always_U, torch.inf))
    layer_U = _layer_of_each_unit(scores)[order_U]

    # 2. for each bound, compute the costs that units add, and the limit on the sum of these costs
    rises = [_rises(layer_U, cost_K) for cost_K in costs]
    rooms = []
    for limit, layers in zip(most, costs, strict=True):
        cost_of_none = sum(float(cost_K[0]) for cost_K in layers)
        rooms.append(limit - cost_of_none)

    # 3. remove the first unit that exceeds a bound and all later units of its layer, and repeat
    kept_U = torch.ones(len(order_U), dtype=torch.bool)
    while True:
        exceeds_U = torch.zeros_like(kept_U)
        for rise_U, room in zip(rises, rooms, strict=True):
            exceeds_U |= (rise_U * kept_U).cumsum(0) > room
        exceeds_U &= kept_U
        if not exceeds_U.any():
            return torch.zeros_like(kept_U).scatter(0, order_U, kept_U)
        unit = int(exceeds_U.int().argmax())
        in_other_layers_U = layer_U != layer_U[unit]
        kept_U[unit:] &= in_other_layers_U[unit:]


def _layer_of_each_unit(scores: Sequence[Tensor]) -> Tensor:
    units = torch.tensor([len(score_U) for score_U in scores])
    return torch.arange(len(scores)).repeat_interleave(units)


def _rises(layer_U: Tensor, costs: Sequence[Tensor]) -> Tensor:
    """Return the cost that each unit of a ranking adds to its layer.

    This is the cost of the layer if it keeps the unit and all higher-scored units, minus the cost
    of the layer if it keeps only the higher-scored units.

    layer_U: the layer of each unit, in the order of the ranking. costs: cost_K of each layer.
    """
    rise_U = torch.zeros(len(layer_U), dtype=torch.float64)
    for i, cost_K in enumerate(costs):
        in_layer_U = layer_U == i
        rise_U[in_layer_U] = cost_K.double().diff()
    return rise_U


def in_blocks(score_I: Tensor, size: int, members: int = 1) -> tuple[Tensor, Tensor]:
    """Group neurons into blocks. Return the score (score_B) and neurons (neurons_BN) of each block.

    The neurons of a block are removed together. The first block has the `size` highest-scored
    neurons of each member, the second block has the next `size` neurons of each member, and so on.
    The lowest-scored neurons are left out if they do not fill a block. score_B contains the mean
    score of each block's neurons, and neurons_BN contains the indices of these neurons.
    """
    order_MR = ranked(score_I, members)
    blocks = order_MR.shape[1] // size
    in_blocks_MR = order_MR[:, : blocks * size]
    neurons_MBN = in_blocks_MR.unflatten(1, (blocks, size))
    neurons_BN = neurons_MBN.transpose(0, 1).flatten(1)
    return score_I[neurons_BN].mean(dim=1), neurons_BN
