"""JSON for any reader: JSON has no infinity and no NaN, so that a number that is not finite becomes null."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; each number in it that is not finite becomes null."""
    finite = _each(
        value, lambda one: None if isinstance(one, float) and not math.isfinite(one) else one
    )
    return json.dumps(finite, indent=indent, allow_nan=False)


def infinite(value: Any) -> Any:
    """Return measured numbers as they were before `to_json`: each null in them becomes infinity."""
    return _each(value, lambda one: math.inf if one is None else one)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or holds none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested dicts and lists with each single value in them changed."""
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return change(value)
