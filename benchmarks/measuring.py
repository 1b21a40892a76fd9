"""Code that the benchmarks share: the packaged model, windows, a bare forward pass, and memory.

A window is a row of SEQ_LEN tokens. A bare forward pass runs the decoder without flap.
"""

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
    """Return the packaged SmolLM2-135M-Instruct with its tokenizer, without loading its weights."""
    return find_model(ModelConfig("smollm2-135m", SMOLLM2, device=device), cache_root(None), False)


def loaded(source: CheckpointSource) -> PreTrainedModel:
    """Return a model with all of its weights in memory.

    The weights file is memory-mapped, so a weight is read from disk only when it is first used.
    Therefore, this function uses each weight once.
    """
    model: PreTrainedModel = source.open().model
    for parameter in model.parameters():
        parameter.sum()
    return model


def random_windows(model: PreTrainedModel, number: int) -> Tensor:
    """Return `number` windows of random tokens, which are as good as a text for measuring time."""
    tokens_NT = torch.randint(
        model.config.vocab_size, (number, SEQ_LEN), generator=torch.Generator().manual_seed(0)
    )
    return tokens_NT.to(model.device)


@torch.no_grad()
def bare_forward(model: PreTrainedModel, tokens_NT: Tensor) -> None:
    """Run the decoder without the LM head and without flap, on BATCH_SIZE windows at a time."""
    for batch_NT in tokens_NT.split(BATCH_SIZE):
        model.base_model(input_ids=batch_NT, use_cache=False)


def status_bytes(field: str) -> int:
    """Return a memory size of this process in bytes, from the file /proc/self/status of Linux.

    field: `VmRSS` for the current resident memory, or `VmHWM` for its peak since the last call of
    `reset_peak`.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Reset the peak memory of this process (VmHWM), and return its current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")
