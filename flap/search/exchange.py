"""exchange: units of a plan change sides by what the divergence of the pruned model says of each of them.

One-at-a-time trials of a search do not see what blocks do to each other, which at high ratios is most of the loss.

Legend: N windows · T tokens a window · P positions · U units of a block.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from flap.allocation import Budget, LayerPlan, PruningPlan
from flap.calibration import Calibration
from flap.calibration.covariance import Covariance
from flap.compression.linear import TRIAL_RIDGE
from flap.data import batches, split_windows
from flap.models import PlacedModel
from flap.models.forward import final_states
from flap.search.distances import kl
from flap.search.divergence import EVERY, TOGETHER
from flap.search.effects import BlockEffects, pruned_by
from flap.search.sides import Sides
from flap.storage import ranks
from flap.storage.progress import progress

log = logging.getLogger(__name__)

SHARE = 0.02  # of what is removed, in parameters: the most that the first step exchanges; it falls to 0 over the steps
LEAST_VARIANCE = 1e-12  # of a channel: a block whose inputs are constant has a covariance without an inverse
JUDGED = 4  # times that the divergence is measured on held-out windows on the way


@dataclass(frozen=True)
class Exchanged:
    """A plan after an exchange."""

    plan: PruningPlan
    nats_before: float  # KL(dense ‖ pruned) a token on held-out windows, of the plan before
    nats_after: float
    units: int  # that are kept in the place of others


@torch.no_grad()
def exchange(
    calibration: Calibration, plan: PruningPlan, budget: Budget, fewest: Sequence[int], steps: int
) -> Exchanged:
    """Return the plan whose units have changed sides, in steps that pass the calibration windows once, all together.

        worth of u = (− E[g · S_u r_u] ± ½ E[(g' · S_u r_u)²]) / price_u,  in nats a token over parameters

    is what the divergence rises by without u, to second order at the pruned model (`BlockEffects`; + where u is kept).
    In each step the kept units that are worth least change places with the removed ones that are worth most (`Sides`).
    Then all blocks are fitted again. Of the plans on the way, and the first one, that with the least divergence on the
    held-out windows is returned. fewest: how many units each block keeps at least.
    """
    model, (fitting, held_out) = calibration.model, map(_batches, split_windows(calibration.windows))
    with _frozen(model):
        blocks = list(effects_of(calibration, plan))
        sides = Sides.of(budget, blocks, fewest)
        judges = [(tokens_NT, _every_fourth(model, tokens_NT)) for tokens_NT in ranks.mine(held_out)]
        best = first = _divergence(model, blocks, judges), [one.kept_U for one in blocks]
        if len(fitting) < steps:
            log.warning("structure.exchange=%d: %d steps, as the windows make no more batches", steps, len(fitting))
        steps = min(steps, len(fitting))
        judged = {steps * (k + 1) // JUDGED - 1 for k in range(JUDGED)}
        for step in progress(range(steps), "exchange"):
            some = fitting[step * len(fitting) // steps : (step + 1) * len(fitting) // steps]
            sides.add(model, some)
            sides.change(SHARE * (1 - step / steps))
            if step in judged:
                nats = _divergence(model, blocks, judges)
                best = min(best, (nats, [one.kept_U for one in blocks]), key=lambda pair: pair[0])
    kept = [tuple(kept_U.nonzero().flatten().tolist()) for kept_U in best[1]]
    layers = tuple(map(LayerPlan, kept[::2], kept[1::2]))
    new = sum(int((now & ~before).sum()) for now, before in zip(best[1], first[1], strict=True))
    return Exchanged(PruningPlan(layers, plan.mlp_units), first[0], best[0], new)


def effects_of(calibration: Calibration, plan: PruningPlan) -> Iterator[BlockEffects]:
    """Yield the blocks of all layers, with the covariances of the fitting windows."""
    for i, observed in calibration.visit("exchange", covariance=True):
        assert observed is not None
        blocks = calibration.model.adapter.blocks(i)
        for block, kept, [statistics] in zip(blocks, plan.layers[i], observed.blocks, strict=True):
            assert statistics.parts is not None
            covariance, kept_U = Covariance.of(statistics.parts[0]), torch.zeros(block.num_units, dtype=torch.bool)
            kept_U[list(kept)] = True
            order_I = torch.arange(len(covariance.mean_I), device=covariance.mean_I.device)
            covariance_II = covariance.hessian(order_I, TRIAL_RIDGE, torch.float32)
            covariance_II.diagonal().clamp_(min=LEAST_VARIANCE)
            yield BlockEffects(block, covariance_II, covariance.mean_I, kept_U)


def _batches(windows: Sequence[Tensor]) -> list[Tensor]:
    return batches(windows, max(1, TOGETHER // windows[0].shape[1]))


def _every_fourth(model: PlacedModel, tokens_NT: Tensor) -> Tensor:
    """Return the final hidden states at every fourth position, hidden_PD."""
    return final_states(model.adapter, tokens_NT)[EVERY - 1 :: EVERY].clone()  # the others are not kept


def _divergence(model: PlacedModel, blocks: Sequence[BlockEffects], judges: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return KL(dense ‖ pruned) in nats a token, at every fourth position. judges: tokens, and dense states there."""
    nats = []
    for tokens_NT, dense_PD in judges:
        with pruned_by(blocks):
            hidden_PD = _every_fourth(model, tokens_NT)
        log_p_PV = log_softmax(model.adapter.logits(dense_PD).float(), dim=-1)
        nats.append((kl(log_p_PV.exp(), log_p_PV, model.adapter.logits(hidden_PD).float()), len(dense_PD)))
    totals = ranks.together(nats)
    nats_a_token = sum(one for one, _ in totals) / max(1, sum(count for _, count in totals))
    return max(0.0, nats_a_token)  # not below by rounding


@contextmanager
def _frozen(model: PlacedModel) -> Iterator[None]:
    """Let no parameter of the model require a gradient inside the block."""
    trainable = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
