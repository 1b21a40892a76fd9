"""Read the headers of safetensors files: the names and shapes of the tensors, without their data."""

from pathlib import Path

from safetensors import SafetensorError, safe_open


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file, by name.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or truncated ({error})") from error
