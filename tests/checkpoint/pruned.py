"""Pruned tiny models and what they compute."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import ALAM, PruningPlan, Structure, price
from flap.calibration import collect
from flap.checkpoint.convert import become_checkpointable
from flap.compression import BiasCompensation, Compensation, CompressLayer, compress, prune_layer
from flap.importance import WIFV, score_layers
from flap.models import adapt
from tests.cases import tokens

AL_AM, BIAS = ALAM(), BiasCompensation()


def prune(
    model: PreTrainedModel,
    ratio: float,
    compress_layer: CompressLayer = prune_layer,
    structure: Structure = AL_AM,
    compensation: Compensation = BIAS,
) -> PruningPlan:
    adapter = adapt(model)
    statistics = collect(adapter, tokens(), batch_size=3)
    scores = score_layers(WIFV(), adapter, range(len(adapter.layers)), statistics)
    plan = structure.allocate(scores, price(adapter, ratio))
    compress(adapter, plan, compensation, statistics, compress_layer)
    become_checkpointable(adapter)
    return plan


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens(seed=7)).logits


@torch.no_grad()
def hidden(model: PreTrainedModel) -> Tensor:
    return model.base_model(input_ids=tokens(seed=7)).last_hidden_state


def generated(model: PreTrainedModel, **options: object) -> Tensor:
    return model.generate(tokens(seed=7)[:2, :5], max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)


@dataclass(frozen=True)
class Saved:
    directory: Path
    model: PreTrainedModel
    plan: PruningPlan
