"""Read and write JSON, and read YAML. Files that are damaged or nested too deeply are detected.

JSON has no infinity and no NaN, so `to_json` writes null in place of infinity and NaN.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

# The maximum depth of nested lists and dicts in a file. Files that flap writes have at most ten
# levels. A file with thousands of levels would exceed Python's recursion limit.
DEEPEST = 100
TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to JSON. Infinity and NaN become null."""
    return json.dumps(_each(value, _null_if_infinite), indent=indent, allow_nan=False)


def infinite(value: Any) -> Any:
    """Return a parsed JSON value in which each null is replaced by infinity.

    `to_json` writes null in place of infinity. Use this function only for measured values, such as
    perplexities, in which null stands for infinity.
    """
    return _each(value, _infinite_if_null)


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: The text is not valid JSON, or is nested deeper than `DEEPEST` levels.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _check_depth(value)
    return value


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not valid JSON, or is nested deeper than `DEEPEST` levels.
    """
    return parse_json(path.read_bytes())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object. Return {} if the file is missing or damaged."""
    try:
        return dict(load_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def read_yaml(path: Path, kind: type = dict) -> Any:
    """Read a YAML file that contains a mapping or a list, without resolving interpolations.

    If the file is missing or damaged, or does not contain a value of the type `kind`, return an
    empty dict or list of this type.

    kind: the expected type of the content, dict or list.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        _check_depth(content)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
        return kind()
    return content if isinstance(content, kind) else kind()


def _check_depth(value: Any) -> None:
    """Raise a ValueError if lists and dicts are nested deeper than `DEEPEST` levels."""
    level = [[value]]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            inner += [one for one in values if isinstance(one, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(TOO_DEEP)


def _null_if_infinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _infinite_if_null(value: Any) -> Any:
    return math.inf if value is None else value


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to every value in nested dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return change(value)
