"""Functions that train a tiny pruned model to imitate its dense model, on random tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.recovery import Recovery
from flap.method.recovery.base import HELD_OUT_WINDOWS
from flap.method.recovery.distillation import distil
from flap.method.recovery.teacher import Teacher
from flap.models import Resident
from tests.cases import tiny_model, tokens
from tests.helpers.pruned import prune

SEQ_LEN = 16
BATCH = 8
STEPS = 40
FULL = Recovery(
    dataset="words",
    tokens=STEPS * BATCH * SEQ_LEN,
    learning_rate=0.015,
    seq_len=SEQ_LEN,
    batch_size=BATCH,
)
LORA = replace(FULL, learning_rate=0.01, rank=8)


def dense(architecture: str = "llama-gqa", dtype: torch.dtype = torch.float32) -> Teacher:
    """Return a tiny dense model as the teacher of a training."""
    return Teacher(Resident(in_type(tiny_model(architecture), dtype)))


def in_type(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert all parameters of a model, but not its buffers, to a dtype."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def compressed(
    architecture: str = "llama-gqa", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    model = tiny_model(architecture)
    prune(model, 0.3)
    return in_type(model, dtype)


def windows(recovery: Recovery = FULL) -> Batch:
    number = HELD_OUT_WINDOWS + recovery.steps * recovery.batch_size
    return Batch.of(tokens(number, recovery.seq_len, seed=3))


def recovered(
    model: PreTrainedModel,
    recovery: Recovery,
    folder: Path,
    architecture: str = "llama-gqa",
    seed: int = 0,
) -> dict[str, Any]:
    """Train a model in place, and return the summary of the training for the report."""
    teacher = dense(architecture, model.dtype)
    return distil(recovery, Resident(model), teacher, windows(recovery), folder, seed)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
