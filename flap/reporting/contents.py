"""What a report.json must hold for a study or a comparison to read it."""

from collections.abc import Mapping
from typing import Any

NEEDED: dict[str, Any] = {
    "config": dict, "device": str, "sources": dict, "warnings": list, "parameters.total_before": int,
    "parameters.total_after": int, "ratio.realised_decoder": (int, float), "layers": list, "layers_before": list,
    "evaluation.dense": dict, "evaluation.pruned": dict,
}  # fmt: skip
OPTIONAL: dict[str, Any] = {"layer_errors": list, "domains": dict, "averages": dict, "better": dict, "seconds": dict}


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
