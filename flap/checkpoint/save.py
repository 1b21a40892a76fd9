"""Writing a checkpoint as an atomic directory: weights, config, modelling file, tokenizer and flap.json."""

import glob
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.allocation import PruningPlan
from flap.models import PlacedModel
from flap.storage.files import atomic_directory


def check_target(directory: Path, overwrite: bool) -> None:
    """Check that a checkpoint may be written to a directory.

    Raises:
        ValueError: the directory cannot be made, is not empty and `overwrite` is false, or holds no checkpoint.
    """
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"checkpoint.dir={directory}: expected a directory in a place that can be written to")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"checkpoint.dir={directory}: not empty; expected a new one, or checkpoint.overwrite=true")
    if not (directory / "config.json").is_file():
        raise ValueError(f"checkpoint.dir={directory}: holds no checkpoint and is not replaced; name another")


def check_room(target: Path, num_bytes: int) -> None:
    """Check that the disk has room for a checkpoint of this size.

    Raises:
        ValueError: it has not; says how much is needed and how much is free.
    """
    place = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise ValueError(
            f"checkpoint.dir={target}: the pruned model takes {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
            "free there; name a place on a larger disk"
        )


def save(
    model: PlacedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    plan: PruningPlan,
    provenance: dict[str, Any],
    overwrite: bool = False,
) -> PlacedModel:
    """Write a checkpoint as an atomic directory, after a check that it reloads to the same logits.

    Returns the model for further work: the model itself if it is in memory, else the checkpoint.

    Raises:
        ValueError: the directory is not empty, cannot be written, or the reloaded checkpoint has other logits.
    """
    check_target(directory, overwrite)
    _remove_half_written(directory)
    try:
        with atomic_directory(directory) as scratch:
            model.write(scratch)
            tokenizer.save_pretrained(scratch)
            (scratch / "flap.json").write_text(json.dumps({"provenance": provenance, "plan": plan.to_dict()}) + "\n")
            verify(model, scratch)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint.dir={directory}: cannot be written, what was there stays ({error})") from error
    return model.reopen(directory) if model.on_disk else model


def _remove_half_written(directory: Path) -> None:
    """Remove what a run that was killed while it wrote this checkpoint has left beside it."""
    for scratch in directory.parent.glob(f".{glob.escape(directory.name)}.*.partial"):  # as `atomic_directory` names it
        shutil.rmtree(scratch, ignore_errors=True)


def verify(model: PlacedModel, directory: Path) -> None:
    """Check that the reloaded checkpoint has the same logits as the model, on fixed token ids.

    Raises:
        ValueError: they differ; gives the largest difference.
    """
    tokens_NT = torch.arange(1, 33).reshape(2, 16) % int(model.model.config.vocab_size)  # two windows of sixteen
    expected = model.logits(tokens_NT)
    compare(expected, model.reopen(directory).logits(tokens_NT), directory)


def compare(expected: Tensor, reloaded: Tensor, directory: Path) -> None:
    """Check that the reloaded logits equal the expected ones, to 1e-5 of the largest.

    Raises:
        ValueError: logits are not finite, or differ; gives the largest difference.
    """
    expected, reloaded = expected.float(), reloaded.float()
    if not torch.isfinite(expected).all():
        raise ValueError("checkpoint: the logits of the pruned model are not finite; check the model's weights")
    difference = (expected - reloaded).abs().max().item()
    if not difference <= 1e-5 * expected.abs().max().item():
        raise ValueError(
            f"checkpoint: the logits reloaded from {directory} differ from those of the model in memory by "
            f"{difference:.3g}, so it was not kept"
        )
