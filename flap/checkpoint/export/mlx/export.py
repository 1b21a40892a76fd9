"""Write a checkpoint as an atomic folder that `mlx_lm.load` opens: weights, config, tokenizer and the model file."""

import json
import shutil
from pathlib import Path

from flap.checkpoint.export.checkpoint import Shards, read_checkpoint
from flap.checkpoint.export.mlx.config import MODEL_FILE, mlx_config
from flap.storage.atomic_files import atomic_directory


def export_mlx(checkpoint: Path) -> Path:
    """Write the folder `mlx` into a checkpoint's directory and return its path. It needs no package of MLX.

    Raises:
        ValueError: there is no checkpoint, mlx-lm cannot run it, or the folder cannot be written.
    """
    config, tokenizer = read_checkpoint(checkpoint)
    values, target = mlx_config(config), checkpoint / "mlx"
    try:
        with atomic_directory(target, "export") as scratch:
            tokenizer.save_pretrained(scratch)
            (scratch / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            shutil.copy(Path(__file__).with_name(MODEL_FILE), scratch)
            for file in {*Shards.open(checkpoint).files.values(), *checkpoint.glob("generation_config.json")}:
                shutil.copy(file, scratch)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target
