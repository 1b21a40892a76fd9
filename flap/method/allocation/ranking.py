"""Rankings: standardised scores, the highest-scored units, and the prefix of a ranking that is within budget.

Legend: I neurons · B blocks of N neurons · M members of a block · U units of a ranking · R ranks of a member's units ·
K kept units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def standardise(score: Tensor) -> Tensor:
    """Return (score - mean) / unbiased standard deviation, over all channels of a layer; zeros for a constant layer."""
    wide = score.double()
    if wide.numel() < 2:
        return torch.zeros_like(wide)
    deviation = wide.std()
    # a deviation as small as the rounding of the scores counts as zero: else rounding errors would be ranked
    if deviation <= 1e-7 * wide.abs().max():
        return torch.zeros_like(wide)
    return (wide - wide.mean()) / deviation


def highest(score_U: Tensor, count: int, members: int = 1) -> tuple[int, ...]:
    """Return the indices of the `count` highest scores of each member, ascending; of equal scores the first ones."""
    return tuple(ranked(score_U, members)[:, :count].flatten().sort().values.tolist())


def ranked(score_U: Tensor, members: int) -> Tensor:
    """Return order_MR, the indices of each member's units from the highest score down; of equal scores, in order."""
    score_MU = score_U.reshape(members, len(score_U) // members)
    first_M1 = torch.arange(members)[:, None] * score_MU.shape[1]
    return score_MU.argsort(descending=True, stable=True) + first_M1


def affordable(score_U: Tensor, price_U: Tensor, protected_U: Tensor, to_keep: float) -> Tensor:
    """Return the mask of the kept units: the prefix of the ranking by score whose total price is nearest to `to_keep`.

    Protected units come first in the ranking, whatever their scores, and are always kept. Their price counts.
    """
    order = score_U.masked_fill(protected_U, torch.inf).argsort(descending=True, stable=True)
    total_U = price_U[order].cumsum(0)
    distance_U = (total_U - to_keep).abs()
    size = max(int(protected_U.sum()), int(distance_U.argmin()) + 1)
    kept_U = torch.zeros(len(score_U), dtype=torch.bool)
    kept_U[order[:size]] = True
    return kept_U


def within(
    scores: Sequence[Tensor],
    fewest: Sequence[int],
    costs: Sequence[Sequence[Tensor]],
    most: Sequence[float],
) -> Tensor:
    """Return the mask of the kept units of all layers: from the highest score down, each one that is within all bounds.

    scores: those of the units of each layer. fewest: the number of each layer's best units that are kept first. costs:
    for each bound cost_K of each layer. most: for each bound the most that all layers may cost together. Where a unit
    does not fit, it is removed with all lower ones of its layer, while others go on.
    """
    score_U = torch.cat(list(scores)).masked_fill(best_of_each(scores, fewest), torch.inf)
    order = score_U.argsort(descending=True, stable=True)
    layer_U = torch.cat([torch.full((len(score),), i) for i, score in enumerate(scores)])[order]
    rises = [_in_order(layer_U, cost_K) for cost_K in costs]
    room = [
        limit - sum(float(cost_K[0]) for cost_K in layers)
        for limit, layers in zip(most, costs, strict=True)
    ]
    kept_U = torch.ones(len(order), dtype=torch.bool)
    while True:
        pairs = zip(rises, room, strict=True)
        too_much_U = (
            torch.stack([(rise_U * kept_U).cumsum(0) > left for rise_U, left in pairs]).any(dim=0)
            & kept_U
        )
        if not too_much_U.any():
            return torch.zeros_like(kept_U).scatter(0, order, kept_U)
        first = int(too_much_U.int().argmax())
        kept_U[first:] &= layer_U[first:] != layer_U[first]


def _in_order(layer_U: Tensor, costs: Sequence[Tensor]) -> Tensor:
    """Return rise_U: what each unit of a ranking adds to the cost of its layer's units before it."""
    rise_U = torch.zeros(len(layer_U), dtype=torch.float64)
    for i, cost_K in enumerate(costs):
        rise_U[layer_U == i] = cost_K.double().diff()
    return rise_U


def best_of_each(scores: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return a mask over the concatenated scores that selects the highest `counts[i]` units of each layer i."""
    best = (
        torch.tensor(highest(score, count)) for score, count in zip(scores, counts, strict=True)
    )
    return torch.cat(
        [
            torch.isin(torch.arange(len(score)), of_layer)
            for score, of_layer in zip(scores, best, strict=True)
        ]
    )


def in_blocks(score_I: Tensor, size: int, members: int = 1) -> tuple[Tensor, Tensor]:
    """Return score_B and neurons_BN, the blocks of neurons that are kept or removed together, and their mean scores.

    The first block has the highest `size` neurons of each member, the second one the next `size`, and so on. The lowest
    neurons, if too few to fill a block, are in no block.
    """
    order_MR = ranked(score_I, members)
    blocks = order_MR.shape[1] // size
    blocks_MBN = order_MR[:, : blocks * size].unflatten(1, (blocks, size))
    neurons_BN = blocks_MBN.transpose(0, 1).flatten(1)
    return score_I[neurons_BN].mean(dim=1), neurons_BN
