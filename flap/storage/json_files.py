"""Read and write JSON, and read YAML, with checks for damaged files.

JSON has no infinity and no NaN, so `to_json` writes a number that is not finite as null.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

# Maximum number of levels of nested lists and objects. Files that flap writes have at most ten
# levels. Thousands of levels would exceed Python's recursion limit.
DEEPEST = 100
TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to a JSON text. Numbers that are not finite become null."""
    return json.dumps(_each(value, _null_if_infinite), indent=indent, allow_nan=False)


def infinite(value: Any) -> Any:
    """Return parsed JSON in which each null is replaced by infinity.

    This is for measured values, for which `to_json` has written null in place of infinity.
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
    """Read a JSON file that contains an object, and return {} if the file is missing or damaged."""
    try:
        return dict(load_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def read_yaml(path: Path, kind: type = dict) -> Any:
    """Read a YAML file that contains a mapping or a list. Interpolations are not resolved.

    Return an empty dict or list, as `kind` says, if the file is missing or damaged, or contains the
    other type.

    kind: the expected type, dict or list.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        _check_depth(content)
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
        return kind()
    return content if isinstance(content, kind) else kind()


def _check_depth(value: Any) -> None:
    """Refuse lists and dicts that are nested deeper than `DEEPEST` levels."""
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
