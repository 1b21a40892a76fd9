"""Prune tiny models, compute their logits, and save their checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.save import make_label, save_checkpoint
from flap.data import Batch
from flap.method.allocation import ALAM, PruningPlan, Structure, price
from flap.method.calibration import Calibration
from flap.method.compression import (
    BiasCompensation,
    Compensation,
    CompressLayer,
    compress_layers,
    slice_layer,
)
from flap.method.importance import WIFV, score_layers
from flap.models import PlacedModel, Resident, adapt
from tests.cases import collect, tokens

AL_AM = ALAM()
BIAS = BiasCompensation()


def calibrated(model: PreTrainedModel | PlacedModel) -> Calibration:
    placed = model if isinstance(model, PlacedModel) else Resident(model)
    statistics = collect(placed, tokens(), batch_size=3)
    return Calibration(placed, Batch.of(tokens()), 3, statistics)


def decided(calibration: Calibration, ratio: float, structure: Structure = AL_AM) -> PruningPlan:
    adapter = calibration.model.adapter
    return structure.allocate(
        score_layers(WIFV(), adapter, calibration.visit("score", False)), price(adapter, ratio)
    )


def plan_of(model: PreTrainedModel | PlacedModel, ratio: float) -> PruningPlan:
    """Return the plan with which `prune` would prune this model at this ratio."""
    return decided(calibrated(model), ratio)


def prune(
    model: PreTrainedModel | PlacedModel,
    ratio: float,
    compress_layer: CompressLayer = slice_layer,
    structure: Structure = AL_AM,
    compensation: Compensation = BIAS,
) -> PruningPlan:
    calibration = calibrated(model)
    placed = calibration.model
    plan = decided(calibration, ratio, structure)
    compress_layers(
        placed.adapter,
        plan,
        compensation,
        calibration.visit("compress", False, changing=True),
        compress_layer,
    )
    become_checkpointable(placed)
    return plan


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens(seed=7)).logits


@torch.no_grad()
def hidden(model: PreTrainedModel) -> Tensor:
    return adapt(model).base(input_ids=tokens(seed=7)).last_hidden_state


def generated(model: PreTrainedModel, **options: object) -> Tensor:
    return model.generate(
        tokens(seed=7)[:2, :5], max_new_tokens=6, min_new_tokens=6, do_sample=False, **options
    )


@dataclass(frozen=True)
class Saved:
    directory: Path
    model: PreTrainedModel
    plan: PruningPlan


def save_pruned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    plan: PruningPlan,
    **provenance: Any,
) -> Saved:
    save_checkpoint(Resident(model), tokenizer, directory, make_label(plan.to_dict(), provenance))
    return Saved(directory, model, plan)
