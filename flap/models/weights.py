"""The safetensors files of a checkpoint: which file holds which tensor, and whether all tensors are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flap.storage.headers import tensor_shapes

INDEX = "model.safetensors.index.json"


def tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file of each tensor, by the tensor's name.

    Raises:
        ValueError: the index cannot be read.
    """
    if not (directory / INDEX).is_file():
        file = directory / "model.safetensors"
        return dict.fromkeys(tensor_shapes(file), file)
    try:
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        return {str(name): directory / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of tensors ({type(error).__name__})") from error


def check_weights(directory: Path) -> None:
    """Check that all safetensors files of a directory are complete. Reads only their headers.

    Raises:
        ValueError: there is no file, one is missing or damaged, or one lacks a tensor that the index assigns to it.
    """
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise ValueError("no *.safetensors in this directory (pickled weights are not read)")
    tensors = {shard: tensor_shapes(shard) for shard in shards}
    if not (directory / INDEX).is_file():
        return
    files = tensor_files(directory)
    if outside := sorted({str(file) for file in files.values() if file.parent != directory}):
        raise ValueError(f"{INDEX} names {outside[0]}, which lies outside the directory")
    if missing := sorted({file.name for file in files.values()} - {shard.name for shard in shards}):
        raise ValueError(f"{INDEX} names {', '.join(missing)}, which is missing")
    if absent := [name for name, file in files.items() if name not in tensors[file]]:
        first = f"{absent[0]} in {files[absent[0]].name}"
        raise ValueError(f"{INDEX} names {len(absent)} tensors that their files do not hold, as {first}")


def check_read(loading_info: Mapping[str, Any]) -> None:
    """Check that transformers has read every tensor from the files, with the shape that the config gives.

    Raises:
        ValueError: a tensor is in no file, or has another shape there; names the first three.
    """
    problems = {"missing_keys": "are missing", "mismatched_keys": "have another shape than the config says"}
    for kind, problem in problems.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            raise ValueError(f"{len(names)} tensors {problem}, as {', '.join(names[:3])}")
