"""The safetensors files of a checkpoint: which file holds which tensor, their type, and whether all files are there."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Options of `cached_file`: None where there is no file, or no network.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def tensor_headers(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type, as BF16, and shape of each tensor in a file, by name, without its data.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or truncated ({error})") from error


def tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file of each tensor, by the tensor's name: of the same files as transformers reads.

    Raises:
        ValueError: there is no file, it is damaged, or the index cannot be read.
    """
    if (file := directory / WEIGHTS).is_file():  # an index beside it is an older checkpoint's
        return dict.fromkeys(tensor_headers(file), file)
    if not (directory / INDEX).is_file():
        raise ValueError(f"no {WEIGHTS} in this directory (pickled weights are not read)")
    try:
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        return {str(name): directory / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of tensors ({type(error).__name__})") from error


def stored_dtype(path: str, download: bool) -> torch.dtype | None:
    """Return the type of the first floating-point tensor of a checkpoint, by which transformers goes, too.

    None if no file is found. path: a directory or hub id. download: get the file from the hub, as the model will be.
    """
    file = cached_file(path, WEIGHTS, local_files_only=not download, **QUIET)
    if not file and (index := cached_file(path, INDEX, local_files_only=not download, **QUIET)):
        name = min(json.loads(Path(index).read_text())["weight_map"].values())
        file = cached_file(path, name, local_files_only=not download, **QUIET)
    names = (dtype for dtype, _ in tensor_headers(Path(file)).values()) if file else ()
    return next((TYPES[name] for name in names if name in TYPES), None)


def check_weights(directory: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Check that the files of a directory's weights are complete, and return the shapes in each by the tensor's name.

    Reads only their headers.

    Raises:
        ValueError: there is no file, one is missing or damaged, or one lacks a tensor that the index assigns to it.
    """
    files = tensor_files(directory)
    shards = sorted(set(files.values()))
    if not shards:
        raise ValueError(f"{INDEX} names no tensor")
    if outside := [str(shard) for shard in shards if shard.parent != directory]:
        raise ValueError(f"{INDEX} names {outside[0]}, which lies outside the directory")
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ValueError(f"{INDEX} names {', '.join(missing)}, which is missing")
    shapes = {
        shard: {name: shape for name, (_, shape) in tensor_headers(shard).items()}
        for shard in shards
    }
    if absent := [name for name, file in files.items() if name not in shapes[file]]:
        first = f"{absent[0]} in {files[absent[0]].name}"
        raise ValueError(
            f"{INDEX} names {len(absent)} tensors that their files do not hold, as {first}"
        )
    return shapes
