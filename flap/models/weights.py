"""Read the headers of a checkpoint's safetensors files, and check that the files are complete."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from flap.storage import load_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Options that make `cached_file` return None if the file does not exist or there is no network.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def tensor_headers(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype, such as "BF16", and the shape of each tensor in a safetensors file.

    Only the header of the file is read.

    Raises:
        ValueError: the file cannot be opened, or is damaged or truncated.
    """
    try:
        # open the file first, because safetensors would say that an unreadable file is missing
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be opened ({error.strerror})") from error
    headers: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                headers[name] = tensor.get_dtype(), tuple(tensor.get_shape())
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or truncated ({error})") from error
    return headers


def tensor_files(directory: Path) -> dict[str, Path]:
    """Return a dict from the name of each tensor to the safetensors file that contains it.

    Raises:
        ValueError: there is neither model.safetensors nor an index, or one of them is damaged.
    """
    file = directory / WEIGHTS
    if file.is_file():  # ignore an index next to this file, as it belongs to an older checkpoint
        return dict.fromkeys(tensor_headers(file), file)
    index = directory / INDEX
    if not index.is_file():
        raise ValueError(f"no {WEIGHTS} in this directory (pickled weights are not read)")
    return {name: directory / file_name for name, file_name in _read_weight_map(index).items()}


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = load_json(index)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of tensors ({type(error).__name__})") from error


def largest_number(directory: Path) -> int | None:
    """Return the largest number in the names of tensors, for example 3 for `model.layers.3.mlp`.

    Return None if the weights are missing or damaged, or if no name has a number.
    """
    try:
        names = tensor_files(directory)
    except (OSError, ValueError):
        return None
    numbers = {int(part) for name in names for part in name.split(".") if part.isdecimal()}
    return max(numbers, default=None)


def stored_dtype(path: str, download: bool) -> torch.dtype | None:
    """Return the dtype of the first floating-point tensor of a checkpoint.

    If the config names no dtype, transformers loads the model in this dtype. Return None if there
    are no weights or no floating-point tensors.

    path: a directory or a hub id.
    download: whether to download the file with this tensor if it is not in the hub cache.
    """
    local_only = not download
    file = cached_file(path, WEIGHTS, local_files_only=local_only, **QUIET)
    if file is None:
        index = cached_file(path, INDEX, local_files_only=local_only, **QUIET)
        if index is None:
            return None
        first = min(_read_weight_map(Path(index)).values())
        file = cached_file(path, first, local_files_only=local_only, **QUIET)
    if file is None:
        return None
    for name, _ in tensor_headers(Path(file)).values():
        if name in TYPES:
            return TYPES[name]
    return None


def check_weights(directory: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Check that the weights in a directory are complete, and return the shapes in each file.

    Only the headers of the files are read.

    Raises:
        ValueError: a file is missing or damaged, or the index names no tensor, a file outside the
            directory, or a tensor that is not in the file given for this tensor.
    """
    files = tensor_files(directory)
    shards = sorted(set(files.values()))
    if not shards:
        raise ValueError(f"{INDEX} names no tensor")

    outside = [str(shard) for shard in shards if shard.parent != directory]
    if outside:
        raise ValueError(f"{INDEX} names {outside[0]}, which lies outside the directory")

    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{INDEX} names {', '.join(missing)}, which is missing")

    shapes = {
        shard: {name: shape for name, (_, shape) in tensor_headers(shard).items()}
        for shard in shards
    }
    absent = [name for name, file in files.items() if name not in shapes[file]]
    if absent:
        first = f"{absent[0]} in {files[absent[0]].name}"
        raise ValueError(
            f"{INDEX} names {len(absent)} tensors that their files do not contain, such as {first}"
        )
    return shapes
