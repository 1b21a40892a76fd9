"""Rankings: standardised scores, and the best prefix that a budget affords.

Legend: L layers · G attention units · C channels a unit · I neurons · B blocks of N neurons · U units of a ranking.
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


def highest(score_U: Tensor, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores, ascending; among equals the first ones."""
    return tuple(sorted(score_U.argsort(descending=True, stable=True)[:count].tolist()))


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


def in_blocks(score_I: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """score_B and neurons_BN: the best `size` neurons, the next best, and so on, each scored by its mean.

    The worst neurons, too few to fill a block, are in none.
    """
    order_I = score_I.argsort(descending=True, stable=True)
    neurons_BN = order_I[: len(order_I) // size * size].reshape(-1, size)
    return score_I[neurons_BN].mean(dim=1), neurons_BN
