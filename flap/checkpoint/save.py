"""Write the canonical directory: weights, config, modelling file, tokenizer and flap.json; whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.allocation import PruningPlan
from flap.checkpoint.load import load
from flap.files import written_whole


def check_target(directory: Path, overwrite: bool) -> None:
    """Raises: ValueError: the target cannot be made, or holds something that may not or should not be replaced."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"checkpoint.dir={directory}: expected a directory in a place that can be written to")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"checkpoint.dir={directory}: not empty; expected a new one, or checkpoint.overwrite=true")
    if not (directory / "config.json").is_file():
        raise ValueError(f"checkpoint.dir={directory}: holds no checkpoint and is not replaced; name another")


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    plan: PruningPlan,
    provenance: dict[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write to a temporary folder beside `directory`, reload that and compare, then put it in place.

    Raises:
        ValueError: the target is taken, cannot be written, or what was written does not compute what memory computes.
    """
    check_target(directory, overwrite)
    try:
        with written_whole(directory) as scratch:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            (scratch / "flap.json").write_text(json.dumps({"provenance": provenance, "plan": plan.to_dict()}) + "\n")
            verify(model, scratch)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint.dir={directory}: cannot be written, what was there stays ({error})") from error
    return directory


@torch.no_grad()
def verify(model: PreTrainedModel, directory: Path) -> None:
    """Compare the logits of the reloaded checkpoint with those in memory, on fixed token ids.

    Raises:
        ValueError: they differ; gives the largest difference and names both sides.
    """
    tokens_NT = probe(model).to(model.device)
    expected = model(input_ids=tokens_NT, use_cache=False).logits
    spread = hasattr(model, "hf_device_map")  # by accelerate, and so is what is reloaded beside it
    reloaded = load(directory, device_map="auto" if spread else model.device)
    compare(expected, reloaded(input_ids=tokens_NT, use_cache=False).logits, directory)


def probe(model: PreTrainedModel) -> Tensor:
    """Fixed token ids that a checkpoint is compared on: two windows of sixteen."""
    return torch.arange(1, 33).reshape(2, 16) % int(model.config.vocab_size)


def compare(expected: Tensor, found: Tensor, directory: Path) -> None:
    """Raises: ValueError: logits are not finite, or differ; gives the largest difference and names both sides."""
    expected, found = expected.float(), found.float()
    if not torch.isfinite(expected).all():
        raise ValueError("checkpoint: the logits of the pruned model are not finite; check the model's weights")
    difference = (expected - found).abs().max().item()
    if not difference <= 1e-5 * expected.abs().max().item():
        raise ValueError(
            f"checkpoint: the logits reloaded from {directory} differ from those of the model in memory by "
            f"{difference:.3g}, so it was not kept"
        )
