"""Removals from one projection of which each contains those before it: they share their factorisations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flap.compression.compensation import Removal


def chains(removals: Sequence[Removal]) -> list[list[int]]:
    """Return the indices of the removals in chains in which each one contains those before it."""
    found: list[list[int]] = []
    for k in sorted(range(len(removals)), key=lambda k: len(removals[k].pruned_P)):
        pruned = set(removals[k].pruned_P.tolist())
        nested = (chain for chain in found if pruned.issuperset(removals[chain[-1]].pruned_P.tolist()))
        chain = next(nested, None)
        if chain is None:
            found.append([k])
        else:
            chain.append(k)
    return found


def order(chain: Sequence[Removal]) -> Tensor:
    """Return all channels: those that no removal of a chain removes, then those that only the last one does, …"""
    count_I = torch.zeros(sum(map(len, chain[0])), dtype=torch.int64, device=chain[0].kept_K.device)
    for removal in chain:
        count_I[removal.pruned_P] += 1
    return count_I.argsort(stable=True)
