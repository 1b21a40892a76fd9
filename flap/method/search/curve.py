"""The divergence of each unit of a block, from the measured divergences of the block with some units removed.

Legend: U units of a block · I neurons of all experts · E experts · R ranks of an expert's neurons.
"""

from itertools import pairwise

import torch
from torch import Tensor

from flap.method.allocation.ranking import ranked

LEAST = 1e-200  # the least rise between two levels, in nats: where none was measured, the scores give the order


def spread_by_rank(score_I: Tensor, measured: dict[int, float], experts: int) -> Tensor:
    """Return nats_I as `spread`, for experts that all lose as many neurons: a unit is one neuron of every expert.

    The neurons of one rank, each within its expert, have the same nats.
    """
    order_ER = ranked(score_I, experts)
    nats_R = spread(score_I[order_ER].double().mean(dim=0), measured)
    nats_I = nats_R.new_empty(order_ER.numel())
    nats_I[order_ER] = nats_R
    return nats_I


def spread(score_U: Tensor, measured: dict[int, float]) -> Tensor:
    """Return nats_U, the divergence that the removal of each unit adds after all lower-scored units; rises with score.

    measured: number of lowest-scored units that are removed -> divergence, in nats a token.
    """
    order = score_U.argsort(descending=True, stable=True).flip(0)  # the order in which `highest` removes them
    cost_U = score_U[order].double()
    cost_U = cost_U.clamp_min(1e-9 * float(cost_U.max())) if (cost_U > 0).any() else torch.ones_like(cost_U)
    error = torch.cat([torch.zeros(1).double(), cost_U.cumsum(0)])
    divergence, start, slope = torch.zeros_like(error), 0, 1.0
    for end, nats in sorted(measured.items()):
        rise = max(nats - float(divergence[start]), LEAST)
        slope = rise / float(error[end] - error[start])
        divergence[start : end + 1] = divergence[start] + slope * (error[start : end + 1] - error[start])
        start = end
    divergence[start:] = divergence[start] + slope * (error[start:] - error[start])  # beyond the last level
    nats_U = torch.empty_like(cost_U)
    # within a straight piece of the envelope all steps are equal: the factor keeps the order of the scores
    nats_U[order] = convex_steps(divergence.tolist()) * (1 + 1e-9 * torch.arange(len(order)).double())
    return nats_U


def convex_steps(values: list[float]) -> Tensor:
    """Return the differences of the lower convex envelope of a sequence (Andrew's monotone chain)."""
    corners = [0]
    for end in range(1, len(values)):
        while len(corners) > 1 and _slope(values, corners[-2], corners[-1]) >= _slope(values, corners[-1], end):
            corners.pop()
        corners.append(end)
    pieces = pairwise(corners)
    return torch.tensor([_slope(values, a, b) for a, b in pieces for _ in range(b - a)], dtype=torch.float64)


def _slope(values: list[float], start: int, end: int) -> float:
    return (values[end] - values[start]) / (end - start)
