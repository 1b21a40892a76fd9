"""Writing a checkpoint as an atomic directory: weights, config, modelling file, tokenizer and flap.json."""

import os
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from flap.checkpoint.card import is_generated
from flap.config import gigabytes
from flap.models import PlacedModel, open_checkpoint
from flap.storage import read_json, to_json
from flap.storage.atomic_files import atomic_directory, is_scratch

LONGEST_NAME = (
    240  # in bytes: a name on disk has 255 at most, and one beside it is longer while it is written
)
LABEL = "flap.json"  # says that a directory is a checkpoint of this program
OWN_FOLDERS = (  # of exports in a checkpoint's directory, and of a tokenizer with several templates
    "mlx", "onnx", "openvino", "additional_chat_templates",
)  # fmt: skip
OWN_FILES = (  # of a checkpoint's directory that this program writes
    "model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "vocab.json", "vocab.txt", "*.jinja", "*processor_config.json", "modeling_flap.py", LABEL, "model-*.gguf",
)  # fmt: skip


class DifferentError(RuntimeError):
    """A checkpoint that does not compute what the model computes that it was written from: no bad input."""


def followed(directory: Path) -> Path:
    """Return what a symbolic link leads to, which need not be there: a checkpoint goes to its place, the link stays."""
    return Path(os.path.realpath(directory)) if directory.is_symlink() else directory


def check_target(directory: Path, overwrite: bool, model: Path | None = None) -> None:
    """Check that a checkpoint may be written to a directory.

    model: the directory of the dense model, which must stay.

    Raises:
        ValueError: the directory cannot be made, is not empty and `overwrite` is false, holds no checkpoint of this
            program, has no name, or is, contains or lies inside that of the dense model.
    """
    if len(os.fsencode(directory.name)) > LONGEST_NAME:
        raise ValueError(
            f"checkpoint.dir={directory}: expected a name of at most {LONGEST_NAME} bytes"
        )
    nearest = next(
        path for path in (directory, *directory.absolute().parents) if os.path.lexists(path)
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(
            f"checkpoint.dir={directory}: expected a directory in a place that can be written to"
        )
    if model is not None and model.is_dir():
        target = directory.resolve()
        dense = model.resolve()
        if target == dense or target in dense.parents or dense in target.parents:
            raise ValueError(
                f"checkpoint.dir={directory}: expected a directory that is not, holds or lies inside that of the model "
                f"({model}), which has to stay"
            )
    if directory.name in ("", ".."):
        raise ValueError(
            f"checkpoint.dir={directory}: expected the name of a folder, which is replaced as a whole"
        )
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"checkpoint.dir={directory}: not empty; expected a new one, or checkpoint.overwrite=true"
        )
    if not (directory / LABEL).is_file():
        raise ValueError(
            f"checkpoint.dir={directory}: holds no checkpoint of flap ({LABEL}) and is not replaced; name another"
        )


def make_label(
    plan: Mapping[str, Any], provenance: Mapping[str, Any], key: str = ""
) -> dict[str, Any]:
    """Return what `flap.json` says of a checkpoint: how it was made, by which run, and the units that stay.

    key: of the run (`Run.key`), by which a later start knows the checkpoint as its own; empty: of no run.
    """
    label: dict[str, Any] = {"provenance": provenance, "plan": plan}
    if key:
        label["key"] = key
    return label


def label_of(directory: Path) -> dict[str, Any]:
    """Return the provenance and the plan of a checkpoint of this program; empty if there is none that can be read."""
    return read_json(directory / LABEL) if any(directory.glob("*.safetensors")) else {}


def check_disk_space(target: Path, num_bytes: int) -> None:
    """Check that the disk has room for a checkpoint of this size.

    Raises:
        ValueError: it has not; says how much is needed and how much is free.
    """
    place = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise ValueError(
            f"checkpoint.dir={target}: the pruned model takes {gigabytes(num_bytes)} GB, and {gigabytes(free)} GB are "
            "free there; name a place on a larger disk"
        )


def save_checkpoint(
    model: PlacedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    label: dict[str, Any],
    overwrite: bool = False,
    files: Iterable[Path] = (),
) -> PlacedModel:
    """Write a checkpoint as an atomic directory, after a check that it reloads to the same logits.

    label: `make_label`. files: further ones, which are copied into it.
    Returns the model for further work: the model itself if it is in memory, else the checkpoint.

    Raises:
        ValueError: the directory is not empty, or cannot be written.
        DifferentError: the reloaded checkpoint has other logits.
    """
    check_target(directory, overwrite)
    try:
        with atomic_directory(directory, "checkpoint.dir") as scratch:
            model.write(scratch)
            tokenizer.save_pretrained(scratch)
            for file in files:
                shutil.copy2(file, scratch / file.name)
            (scratch / LABEL).write_text(to_json(label) + "\n")
            verify(model, scratch)
            _carry_over(directory, scratch)
    except OSError as error:
        raise ValueError(
            f"checkpoint.dir={directory}: cannot be written, what was there stays ({error})"
        ) from error
    return model.saved_in(directory)


def _carry_over(old: Path, new: Path) -> None:
    """Copy files that this program did not write from the checkpoint that is replaced to the new one."""
    for path in sorted(old.iterdir()) if old.is_dir() else ():
        own = any(
            fnmatch(path.name, pattern) for pattern in (OWN_FOLDERS if path.is_dir() else OWN_FILES)
        )
        if own or is_generated(path) or is_scratch(path.name) or os.path.lexists(new / path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def verify(model: PlacedModel, directory: Path) -> None:
    """Check that the reloaded checkpoint has the same logits as the model, on fixed token ids, to 1e-5 of the largest.

    Raises:
        DifferentError: logits are not finite, or differ; gives the largest difference.
    """
    tokens_NT = (
        torch.arange(1, 33).reshape(2, 16) % model.adapter.vocab_size
    )  # two windows of sixteen
    expected = model.logits(tokens_NT).float()
    reloaded = open_checkpoint(directory, model.device, model.work).logits(tokens_NT).float()
    if not torch.isfinite(expected).all():
        raise DifferentError(
            "checkpoint: the logits of the pruned model are not finite; check the model's weights"
        )
    difference = (expected - reloaded).abs().max().item()
    if not difference <= 1e-5 * expected.abs().max().item():
        raise DifferentError(
            f"checkpoint: the logits reloaded from {directory} differ from those of the model in memory by "
            f"{difference:.3g}, so it was not kept"
        )
