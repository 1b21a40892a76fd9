"""Whole layers: a linear map in the MLP before them does what it can of theirs (ReplaceMe, arXiv 2505.02819).

Legend: D hidden size · O = D output channels · I input channels · K, P the channels of m and δ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from flap.allocation import PruningPlan
from flap.calibration import Statistics
from flap.compression.assign import assign
from flap.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.models import Block, ModelAdapter


def fit_across(across: Statistics, compensation: Compensation, trial: bool = False) -> Fit:
    """Return the map T of which T m predicts δ, as the weight of a fit; its bias is zero.

        T = argmin E ‖δ − T m‖² + λ' ‖T‖² = E[δ mᵀ] (E[m mᵀ] + λ' · 1)⁻¹

    m (D): what the MLP before the layers adds to the residual stream, with its bias. δ (D): what they add together. As
    a compensation sees it, δ are channels that leave, each with a one as its output, and m are channels that stay,
    without any: λ, the held-out tokens that choose it, and the choice of T = 0 are those of blocks. In ReplaceMe
    (section 3) the map is 1 + T, and λ draws that to zero. trial: see `Compensation.fits`.
    """
    size = len(across.mean_I) // 2
    channels = torch.arange(2 * size, device=across.mean_I.device)
    weight_OI = (channels == channels[size:, None]).float()
    [fit] = compensation.fits(weight_OI, across, [Removal(*channels.split(size))], trial)
    return fit


def fold(mlp: Block, map_OO: Tensor) -> None:
    """Let an MLP add T m as well: W' = W + T W, b' = b + T b. map_OO: T in float32."""
    output = mlp.output

    def mapped(old: Tensor) -> Tensor:
        return (old.float() + map_OO.to(old.device) @ old.float()).to(old.dtype)

    assign(output, mapped(output.weight.detach()), None if output.bias is None else mapped(output.bias.detach()))


def drop_layers(adapter: ModelAdapter, plan: PruningPlan, maps: Mapping[int, Fit]) -> dict[str, FitReport]:
    """Remove the dropped layers of a plan from the model, and fold their maps; return the fit reports.

    maps: of the dropped layers that follow each other, by the first of them.
    """
    if not plan.dropped:
        return {}
    reports = {}
    for last, first in plan.runs.items():
        fold(adapter.mlp(first - 1), maps[first].weight_OK)
        if (report := maps[first].report) is not None:
            reports[f"layer {first}" if first == last else f"layers {first} to {last}"] = report
    adapter.drop(plan.dropped)
    return reports
