"""The safetensors files of a checkpoint: which tensor lies in which, and whether all that is named is there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"


def tensor_files(directory: Path) -> dict[str, Path]:
    """In which file each tensor lies. Raises: ValueError: the index cannot be read."""
    if not (directory / INDEX).is_file():
        file = directory / "model.safetensors"
        return dict.fromkeys(_names(file), file)
    try:
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        return {str(name): directory / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of tensors ({type(error).__name__})") from error


def check_weights(directory: Path) -> None:
    """Open every file, of which only the headers are read, before anything else is done with a model.

    Raises:
        ValueError: there is none, one is missing or damaged, or lacks a tensor that the index says it holds.
    """
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise ValueError("no *.safetensors in this directory (pickled weights are not read)")
    held = {shard: _names(shard) for shard in shards}
    if not (directory / INDEX).is_file():
        return
    files = tensor_files(directory)
    if missing := sorted({file.name for file in files.values()} - {shard.name for shard in shards}):
        raise ValueError(f"{INDEX} names {', '.join(missing)}, which is missing")
    if lost := [name for name, file in files.items() if name not in held[file]]:
        first = f"{lost[0]} in {files[lost[0]].name}"
        raise ValueError(f"{INDEX} names {len(lost)} tensors that their files do not hold, as {first}")


def check_read(loading_info: Mapping[str, Any]) -> None:
    """Raises: ValueError: transformers made tensors up that no file holds, or that have another shape there."""
    problems = {"missing_keys": "are missing", "mismatched_keys": "have another shape than the config says"}
    for kind, problem in problems.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            raise ValueError(f"{len(names)} tensors {problem}, as {', '.join(names[:3])}")


def _names(shard: Path) -> set[str]:
    try:
        with safe_open(shard, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{shard.name} is damaged or truncated ({error})") from error
