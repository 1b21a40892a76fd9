"""The configs of runs as dotted keys and texts, and the keys in which they differ.

A flat config is {"calibration.num_samples": "128"}.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flap.storage import to_json

# The choices that a run is described by. Other choices that differ are its `options`.
CHOICES = ("model", "method", "metric", "structure", "ratio", "seed")
# Keys that need no place in a flat config: a `RunRecord` has the choices and the names as fields.
FIELDS = (*CHOICES, "model.name", "run_name")
# Keys that do not change the result of a run.
BOOKKEEPING = (
    "cache_dir",
    "use_cache",
    "cache_wait_seconds",
    "resume",
    "tracking",
    "dry_run",
    "checkpoint.overwrite",
    "timeout_minutes",
)


def is_bookkeeping(key: str) -> bool:
    """Return whether a key, such as "tracking.project", does not change the result of a run."""
    return any(key == name or key.startswith(f"{name}.") for name in BOOKKEEPING)


def changes_the_model(key: str) -> bool:
    """Return whether a key changes the pruned model, not only its measurements or files."""
    return not is_bookkeeping(key) and not key.startswith(("eval.", "checkpoint."))


def flatten(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a config as texts: "null", "true", "[128, 1024]".

    Keys that a `RunRecord` has as fields, and keys that do not change the result, are left out.

    choices: the chosen options of the config's groups, such as {"compensation": "linear"}. They
        stand for the classes that they name.
    """
    values = {key: value for key, value in flat(config).items() if not key.endswith("_target_")}
    for group, choice in choices.items():
        if group in config and isinstance(choice, str):
            values[group] = choice

    texts = {}
    for key, value in values.items():
        if key in FIELDS or is_bookkeeping(key):
            continue
        texts[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return texts


def varying(configs: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the keys that have more than one value among the configs, with their values, sorted.

    A value with an interpolation is unknown: the config of a run without a report is not resolved.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            of_key = values.setdefault(key, set())
            if "${" not in value:
                of_key.add(value)

    different = {key: texts for key, texts in sorted(values.items()) if len(texts) > 1}
    return {key: sorted(texts, key=_order) for key, texts in different.items()}


def _order(value: str) -> tuple[bool, float, str]:
    """Return the sort key of a value: numbers come first, by size."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in which two configs give different results, with the differences."""
    there = flat(json.loads(to_json(stored)))
    here = flat(json.loads(to_json(requested)))

    found = {}
    for key in sorted(there | here):
        if not is_bookkeeping(key) and there.get(key) != here.get(key):
            found[key] = f"{key} is {there.get(key)} there and {here.get(key)} here"
    return found


def changes_of_the_model(differences: Mapping[str, str]) -> list[str]:
    """Return the texts of those differences that lead to another pruned model."""
    return [text for key, text in differences.items() if changes_the_model(key)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    level: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            level |= flat(value, f"{prefix}{key}.")
        else:
            level[f"{prefix}{key}"] = value
    return level
