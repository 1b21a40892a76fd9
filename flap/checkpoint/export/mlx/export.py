"""Write a checkpoint as an atomic folder that `mlx_lm.load` opens: weights, config, tokenizer and the model file."""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flap.checkpoint.export.checkpoint import Shards, check_installed, read_checkpoint
from flap.checkpoint.export.mlx.config import MODEL_FILE, mlx_config
from flap.storage.atomic_files import atomic_directory

log = logging.getLogger(__name__)
GROUP_SIZE = 64  # mlx-lm's: this many weights of a row share a scale and an offset


def export_mlx(checkpoint: Path, bits: int | None = None) -> Path:
    """Write the folder `mlx`, or `mlx-<bits>bit`, into a checkpoint's directory and return its path.

    bits: 4 or 8, the size of a weight in matrices whose rows are a multiple of 64; None: weights as in the checkpoint,
    which needs no package of MLX.

    Raises:
        ValueError: there is no checkpoint, mlx-lm cannot run it or is missing, or the folder cannot be written.
    """
    config, tokenizer = read_checkpoint(checkpoint)
    values = mlx_config(config)
    if bits is not None:
        check_installed("mlx", "mlx", "mlx_lm")
    target = checkpoint / ("mlx" if bits is None else f"mlx-{bits}bit")
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            if bits is None:
                _write_model(checkpoint, scratch, values, shutil.copy)
            else:
                _write_quantised(checkpoint, scratch, values, bits)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _write_model(checkpoint: Path, folder: Path, values: dict[str, Any], place: Any) -> None:
    """Write the config and the model file into a folder, and put the files of weights there (`place(file, target)`)."""
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    shutil.copy(Path(__file__).with_name(MODEL_FILE), folder)
    for file in {*Shards.open(checkpoint).files.values(), *checkpoint.glob("generation_config.json")}:
        place(file.absolute(), folder / file.name)


def _write_quantised(checkpoint: Path, folder: Path, values: dict[str, Any], bits: int) -> None:
    """Write the model with matrices of `bits` bits, as mlx-lm quantises them."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    with TemporaryDirectory(dir=folder) as plain, Path(os.devnull).open("w") as quiet:
        _write_model(checkpoint, Path(plain), values, os.symlink)
        model, config = load_model(Path(plain), lazy=True, trust_remote_code=True)  # the file that was just written
        with contextlib.redirect_stdout(quiet):
            model, config = quantize_model(model, config, GROUP_SIZE, bits)
        _warn_of_floats(model, bits)
        save_model(folder, model, donate_model=True)
        save_config(config, folder / "config.json")
        for file in (MODEL_FILE, "generation_config.json"):
            if (Path(plain) / file).exists():
                shutil.copy(Path(plain) / file, folder)


def _warn_of_floats(model: Any, bits: int) -> None:
    """Warn of matrices that stay as they are, and refuse where that is all of them."""
    quantised = sum("scales" in module for _, module in model.named_modules())
    floats = sum(hasattr(module, "to_quantized") for _, module in model.named_modules())
    if not quantised:
        raise ValueError(
            f"mlx: no matrix has rows of a multiple of {GROUP_SIZE}, which {bits} bits take; export without --bits"
        )
    if floats:
        log.warning(
            "%d of %d matrices are not quantised: %d bits take rows of a multiple of %d, and round_to=%d makes them so",
            *(floats, floats + quantised, bits, GROUP_SIZE, GROUP_SIZE),
        )
