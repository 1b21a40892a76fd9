"""Shared code of the benchmarks: the packaged model, windows, a bare forward pass, and memory."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.config import ModelConfig
from flap.models import CheckpointSource, find_model
from flap.storage import cache_root

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEQ_LEN = 128
BATCH_SIZE = 8


def packaged(device: str = "auto") -> CheckpointSource:
    """Return the packaged SmolLM2-135M-Instruct and its tokenizer, not loaded yet."""
    return find_model(ModelConfig("smollm2-135m", SMOLLM2, device=device), cache_root(None), False)


def loaded(source: CheckpointSource) -> PreTrainedModel:
    """Return a model with all of its weights in memory.

    The file is mapped, and a weight is read when it is used first. So each weight is used once.
    """
    model: PreTrainedModel = source.open().model
    for parameter in model.parameters():
        parameter.sum()
    return model


def random_windows(model: PreTrainedModel, number: int) -> Tensor:
    """Return windows of random tokens, because a forward pass takes equally long for any tokens."""
    tokens_NT = torch.randint(
        model.config.vocab_size, (number, SEQ_LEN), generator=torch.Generator().manual_seed(0)
    )
    return tokens_NT.to(model.device)


@torch.no_grad()
def bare_forward(model: PreTrainedModel, tokens_NT: Tensor) -> None:
    """Run the decoder alone, in batches of the size that calibration has."""
    for batch_NT in tokens_NT.split(BATCH_SIZE):
        model.base_model(input_ids=batch_NT, use_cache=False)


def status_bytes(field: str) -> int:
    """Return a size from /proc/self/status, in bytes (Linux).

    VmRSS is what the process holds now, VmHWM the peak since the last reset.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Reset the peak (VmHWM), and return the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")
