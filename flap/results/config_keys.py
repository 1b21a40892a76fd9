"""The config keys of cells: {"calibration.num_samples": "128"}, and those that differ between the cells of a study."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flap.reporting.resume import BOOKKEEPING
from flap.results.study import CHOICES, Cell

# what the fields of `Cell` say; the names of classes, for which the choices stand; the name of each run
SAID = (*CHOICES, "model.name", "run_name")


def flatten(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a config by dotted key, as text: "null", "true", "[128, 1024]".

    choices: those of the config's groups, {"compensation": "linear"}, which stand for the classes that they name.
    """
    groups = {name: value for name, value in choices.items() if name in config and isinstance(value, str)}
    pairs = {**dict(_leaves(config, "")), **groups}
    return {key: value for key, value in pairs.items() if key not in SAID and key.split(".")[0] not in BOOKKEEPING}


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        elif name != "_target_":
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def varying(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Return the config keys with more than one value among the cells, and their values, sorted.

    What an interpolation would give is unknown (the config of a run without a report is not resolved).
    """
    values: dict[str, set[str]] = {}
    for cell in cells:
        for key, value in cell.config.items():
            values.setdefault(key, set()).update(() if "${" in value else {value})
    return {key: sorted(found, key=_order) for key, found in sorted(values.items()) if len(found) > 1}


def _order(value: str) -> tuple[bool, float, str]:
    """Return a sort key: numbers first, by size."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
