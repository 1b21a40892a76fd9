"""Tiny models with random biases, their statistics, plans and logits."""

import copy
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import PruningPlan, price
from flap.calibration import LayerStatistics, collect_covariances
from flap.compression import (
    BiasCompensation,
    Compensation,
    CompressLayer,
    LinearCompensation,
    NoCompensation,
    compress,
    prune_layer,
)
from flap.files import cache_root
from flap.importance import score_layers
from flap.models import adapt
from tests.cases import METRICS, STRUCTURES, tiny_model, tokens, with_biases

COMPENSATIONS = {"bias": BiasCompensation(), "none": NoCompensation(), "linear": LinearCompensation()}


@cache
def calibrated(architecture: str, biased: bool = True) -> tuple[PreTrainedModel, list[LayerStatistics]]:
    model = with_biases(tiny_model(architecture)) if biased else tiny_model(architecture)
    return model, list(collect_covariances(adapt(model), tokens(), 3, cache_root(None)))


def plan_for(architecture: str, metric: str = "WIFV", structure: str = "AL-AM", ratio: float = 0.5) -> PruningPlan:
    model, known = calibrated(architecture)
    scores = score_layers(METRICS[metric](), adapt(model), range(4), known)
    return STRUCTURES[structure]().allocate(scores, price(adapt(model), ratio))


def changed(
    model: PreTrainedModel,
    plan: PruningPlan,
    compensation: Compensation,
    known: list[LayerStatistics],
    how: CompressLayer = prune_layer,
) -> PreTrainedModel:
    changed = copy.deepcopy(model)
    compress(adapt(changed), plan, compensation, known, how)
    return changed


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens()).logits
