"""Read the headers of safetensors files: the names, shapes and types of the tensors, without their data."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file, by name; raises as `_headers`."""
    return {name: tuple(shape) for name, shape in _headers(path, "get_shape").items()}


def tensor_types(path: Path) -> list[str]:
    """Return the type of each tensor in a file as its header names it, as BF16; raises as `_headers`."""
    return list(_headers(path, "get_dtype").values())


def _headers(path: Path, get: str) -> dict[str, Any]:
    """Return what a method of safetensors says of each tensor in a file, by name.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: getattr(file.get_slice(name), get)() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or truncated ({error})") from error
