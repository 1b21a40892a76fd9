"""Statistics of the tokens of all processes, from those of each one: merged exactly, with equal bits on all of them.

Legend: I input channels of an output projection.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from flap.calibration.statistics import Statistics, merge
from flap.calibration.symmetric import Symmetric
from flap.storage import ranks

CPU = torch.device("cpu")


def of_all_ranks(own: Sequence[Statistics], device: torch.device) -> list[Statistics]:
    """Return the statistics of the tokens of all processes, of each member of a block.

    own: those of the tokens of this process; empty: it has none. device: of what is returned then; else that of `own`,
    as weights that are offloaded have none.
    """
    if ranks.size() == 1:
        return list(own)
    device = own[0].mean_I.device if own else device
    plain = [(replace(one, comoments=None).to(CPU), one.comoments and one.comoments.size) for one in own]
    members = list(zip(*filter(None, ranks.gather(plain)), strict=True))
    sums = [one.comoments for one in own] or [size and Symmetric.zeros(size, device) for (_, size), *_ in members]
    parts = [[part.to(device) for part, _ in of_ranks] for of_ranks in members]
    return list(map(_merged, parts, sums))


def _merged(parts: Sequence[Statistics], comoments: Symmetric | None) -> Statistics:
    """Return the statistics of all parts. comoments: of that of this process, to which the others' are added in place.

    C = Σ (C_r + T_r · (mean_r - mean) (mean_r - mean)ᵀ) over the processes r, with their tokens T_r (Chan, Golub and
    LeVeque 1979).
    """
    everything = reduce(merge, parts)
    if comoments is not None:
        for strip_SJ in comoments.strips:
            ranks.add_up(strip_SJ)
        for part in parts:
            shift_I = part.mean_I - everything.mean_I
            comoments.add_outer((shift_I * part.num_tokens).float(), shift_I.float(), alpha=1)
    return replace(everything, comoments=comoments)
