"""Rankings: standardised scores, and the best prefix that a budget affords.

Legend: L layers · G attention units · C channels a unit · I neurons · B blocks of N neurons · E experts · U units of a
ranking.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def standardise(score: Tensor) -> Tensor:
    """(score - mean) / unbiased standard deviation over all channels of one layer; a constant layer becomes zeros."""
    wide = score.double()
    centred = wide - wide.mean()
    deviation = wide.std() if wide.numel() > 1 else torch.zeros(())
    # a spread within rounding of the mean is no spread: dividing by it would rank rounding errors
    if deviation <= 1e-7 * wide.abs().max():
        return torch.zeros_like(wide)
    return centred / deviation


def highest(score_U: Tensor, count: int, experts: int = 1) -> tuple[int, ...]:
    """Indices of the `count` highest scores, of each expert's, ascending; among equals the first ones."""
    return tuple(_ranked(score_U, experts)[:, :count].flatten().sort().values.tolist())


def _ranked(score_U: Tensor, experts: int) -> Tensor:
    """order_EU: indices of each expert's units, from its highest score down; among equals the first one first."""
    score_EU = score_U.reshape(experts, -1)
    first_E = torch.arange(experts)[:, None] * score_EU.shape[1]
    return score_EU.argsort(descending=True, stable=True) + first_E


def affordable(score_U: Tensor, price_U: Tensor, protected_U: Tensor, to_keep: float) -> Tensor:
    """Mask of the prefix, from the highest score down, whose summed price is nearest to `to_keep`.

    Protected units head the ranking whatever their score and are always kept: what that costs, others pay.
    """
    order = score_U.masked_fill(protected_U, torch.inf).argsort(descending=True, stable=True)
    total_U = price_U[order].cumsum(0)
    sizes = (total_U - to_keep).abs()
    size = max(int(protected_U.sum()), int(sizes.argmin()) + 1)
    kept_U = torch.zeros(len(score_U), dtype=torch.bool)
    kept_U[order[:size]] = True
    return kept_U


def best_of_each(scores: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Mask over the concatenated scores: the best so many units of every layer."""
    return torch.cat(
        [
            torch.isin(torch.arange(len(score)), torch.tensor(highest(score, count)))
            for score, count in zip(scores, counts, strict=True)
        ]
    )


def in_blocks(score_I: Tensor, size: int, experts: int = 1) -> tuple[Tensor, Tensor]:
    """score_B and neurons_BN: the best `size` neurons of each expert, the next best, and so on, scored by their mean.

    The worst neurons, too few to fill a block, are in none.
    """
    order_EI = _ranked(score_I, experts)
    blocks_EBN = order_EI[:, : order_EI.shape[1] // size * size].unflatten(1, (-1, size))
    neurons_BN = blocks_EBN.transpose(0, 1).flatten(1)
    return score_I[neurons_BN].mean(dim=1), neurons_BN
