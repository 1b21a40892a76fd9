"""Write a checkpoint directory: weights, config, model code, tokenizer and flap.json.

The directory appears only after it is complete and the logits of the reloaded model were checked.

Legend: N: token sequences, T: tokens per sequence.
"""

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
from flap.storage.atomic_files import atomic_directory, free_space, is_scratch

# Maximum bytes in the name of a checkpoint's directory. File systems allow names of 255 bytes. The
# checkpoint is first written into a temporary directory, whose name is 14 bytes longer.
LONGEST_NAME = 240
LABEL = "flap.json"  # flap recognises its checkpoints by this file
# Folders that flap writes into a checkpoint: exports, and the chat templates of a tokenizer with
# several templates.
OWN_FOLDERS = ("mlx", "onnx", "openvino", "additional_chat_templates")
# Files that flap writes into a checkpoint.
OWN_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "*.jinja",
    "*processor_config.json",
    "modeling_flap.py",
    LABEL,
    "model-*.gguf",
)


class DifferentError(RuntimeError):
    """Raised if the check of a checkpoint fails (`verify`).

    If the reloaded checkpoint computes other logits than the saved model, this is a bug in flap,
    and not a mistake of the user. If logits are not finite, the cause is likely in the
    model's weights.
    """


def followed(directory: Path) -> Path:
    """Return the target of a symbolic link. Other paths are returned unchanged.

    The target need not exist. The checkpoint is written to the target, and the link stays.
    """
    return Path(os.path.realpath(directory)) if directory.is_symlink() else directory


def check_target(directory: Path, overwrite: bool, model: Path | None = None) -> None:
    """Check that a checkpoint may be written to a directory.

    model: the directory of the dense (unpruned) model, which must not be overwritten.

    Raises:
        ValueError: the path of the directory ends without a name (as `..` does), the name is too
            long, or the directory cannot be created. The error is also raised if the directory is
            the directory of the dense model, lies inside it, or contains it. A directory that is
            not empty is allowed only if it has a checkpoint of flap and `overwrite` is true.
    """
    field = f"checkpoint.dir={directory}"
    if len(os.fsencode(directory.name)) > LONGEST_NAME:
        raise ValueError(f"{field}: expected a name of at most {LONGEST_NAME} bytes")

    ancestors = (directory, *directory.absolute().parents)
    nearest = next(path for path in ancestors if os.path.lexists(path))
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    # Check the disk space as well: os.access says that root can write everywhere, even into a
    # kernel folder such as /proc, which has no disk space.
    if not writable or shutil.disk_usage(nearest).total == 0:
        raise ValueError(f"{field}: expected a directory in a place that can be written to")
    if model is not None and model.is_dir() and _overlap(directory.resolve(), model.resolve()):
        raise ValueError(
            f"{field}: expected a directory that is not the model's directory ({model}), not "
            "inside it and not above it, because the model must stay"
        )
    if directory.name in ("", ".."):
        raise ValueError(f"{field}: expected the name of a folder, which is replaced as a whole")

    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{field}: not empty; expected a new one, or checkpoint.overwrite=true")
    if not (directory / LABEL).is_file():
        raise ValueError(
            f"{field}: contains no checkpoint of flap ({LABEL}) and is not replaced; name another"
        )


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def make_label(
    plan: Mapping[str, Any], provenance: Mapping[str, Any], key: str = ""
) -> dict[str, Any]:
    """Return the content of flap.json: the provenance of a checkpoint, and the plan of its pruning.

    The provenance says how the checkpoint was made. The plan says which heads, neurons or experts
    are kept.

    key: the key of the run (`Run.key`), by which the run recognises its checkpoint when the run
        is started again. The key is empty if no run has made the checkpoint.
    """
    label: dict[str, Any] = {"provenance": provenance, "plan": plan}
    if key:
        label["key"] = key
    return label


def label_of(directory: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's flap.json.

    Return {} if flap.json is missing or damaged, or if the directory has no safetensors file.
    """
    if not any(directory.glob("*.safetensors")):
        return {}
    return read_json(directory / LABEL)


def check_disk_space(target: Path, num_bytes: int) -> None:
    """Check that the disk has enough free space for a checkpoint of this size.

    Raises:
        ValueError: the free space is too small. The message gives the required and the free space.
    """
    free = free_space(target)
    if free < num_bytes:
        raise ValueError(
            f"checkpoint.dir={target}: the pruned model takes {gigabytes(num_bytes)} GB, and "
            f"{gigabytes(free)} GB are free there; name a place on a larger disk"
        )


def save_checkpoint(
    model: PlacedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    label: dict[str, Any],
    overwrite: bool = False,
    files: Iterable[Path] = (),
) -> PlacedModel:
    """Write a checkpoint, and check that the reloaded checkpoint computes the logits of `model`.

    label: the content of flap.json (`make_label`).
    files: additional files, which are copied into the directory.

    Returns: the model for later stages of the run. If the layers of `model` are read from files,
        this is a model that reads the new checkpoint; otherwise, it is `model`.

    Raises:
        ValueError: `check_target` refuses the directory, or the directory cannot be written.
        DifferentError: the logits of the reloaded checkpoint differ from those of `model`, or are
            not finite.
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
            _copy_user_files(directory, scratch)
    except OSError as error:
        raise ValueError(
            f"checkpoint.dir={directory}: cannot be written, and is unchanged ({error})"
        ) from error
    return model.saved_in(directory)


def _copy_user_files(old: Path, new: Path) -> None:
    if not old.is_dir():
        return
    for path in sorted(old.iterdir()):
        if _is_from_flap(path) or os.path.lexists(new / path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _is_from_flap(path: Path) -> bool:
    patterns = OWN_FOLDERS if path.is_dir() else OWN_FILES
    if any(fnmatch(path.name, pattern) for pattern in patterns):
        return True
    return is_generated(path) or is_scratch(path.name)


def verify(model: PlacedModel, directory: Path) -> None:
    """Reload a checkpoint, and compare its logits with the model's logits for fixed token ids.

    No logit may differ by more than 1e-5 times the largest absolute logit of the model.

    Raises:
        DifferentError: the logits of the model are not finite, or a reloaded logit differs by
            more than this limit.
    """
    tokens_NT = torch.arange(1, 33).reshape(2, 16) % model.adapter.vocab_size
    expected = model.logits(tokens_NT).float()
    reloaded = open_checkpoint(directory, model.device, model.work).logits(tokens_NT).float()
    if not torch.isfinite(expected).all():
        raise DifferentError(
            "checkpoint: the logits of the pruned model are not finite; check the model's weights"
        )

    difference = (expected - reloaded).abs().max().item()
    if not difference <= 1e-5 * expected.abs().max().item():
        raise DifferentError(
            f"checkpoint: the logits reloaded from {directory} differ from those of the model in "
            f"memory by {difference:.3g}, so the checkpoint was not kept"
        )
