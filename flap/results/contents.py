"""Read the JSON files of a run: what a report.json must hold, and what is said of a file that does not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NEEDED: dict[str, Any] = {
    "config": dict, "device": str, "sources": dict, "warnings": list, "parameters.total_before": int,
    "parameters.total_after": int, "ratio.realised_decoder": (int, float), "layers": list, "layers_before": list,
    "evaluation.dense": dict, "evaluation.pruned": dict,
}  # fmt: skip
OPTIONAL: dict[str, Any] = {"layer_errors": list, "domains": dict, "averages": dict, "better": dict, "seconds": dict}


def read_checked(path: Path, schema: int, lacking: Callable[[dict[str, Any]], list[str]]) -> dict[str, Any]:
    """Return the content of a file that has this schema; lacking: returns the parts that a content has not.

    Raises:
        ValueError: the file is missing or damaged, has another schema, or lacks a part: says which file, and why.
    """
    try:
        content = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: cannot be read ({type(error).__name__})") from error
    if content.get("schema") != schema:
        raise ValueError(f"{path.name}: schema {content.get('schema')}, this version reads {schema}")
    if parts := lacking(content):
        raise ValueError(f"{path.name}: has no valid {', '.join(parts)}")
    return content


def missing(plain: Mapping[str, Any]) -> list[str]:
    """Return the names of the parts that a report's content lacks, or has as another type: ["evaluation.pruned"]."""
    lacking = [name for name, kind in NEEDED.items() if not isinstance(_part(plain, name), kind)]
    return lacking + [name for name, kind in OPTIONAL.items() if not isinstance(plain.get(name, kind()), kind)]


def _part(plain: Mapping[str, Any], name: str) -> Any:
    section, _, part = name.partition(".")
    content = plain.get(section)
    if not part:
        return content
    return content.get(part) if isinstance(content, dict) else None
