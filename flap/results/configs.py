"""The configs of runs as dotted keys and texts, and the keys in which they differ."""

import json
from collections.abc import Iterable
from typing import Any

from flap.storage import to_json

Config = dict[str, Any]  # nested plain data
FlatConfig = dict[str, str]  # {"calibration.num_samples": "128"}

# The choices that a run is described by. Other choices that differ are its `options`.
CHOICES = ("model", "method", "metric", "structure", "ratio", "seed")
# Keys and sections that do not change the result of a run.
BOOKKEEPING = (
    "cache_dir",
    "use_cache",
    "cache_wait_seconds",
    "resume",
    "tracking",
    "dry_run",
    "objective",
    "stop_on_failure",
    "checkpoint.dir",
    "checkpoint.overwrite",
    "timeout_minutes",
)


def is_bookkeeping(key: str) -> bool:
    """Return whether a key, such as "tracking.project", does not change the result of a run."""
    return key in BOOKKEEPING or key.partition(".")[0] in BOOKKEEPING


def is_setting(key: str) -> bool:
    """Return whether a key is a setting: neither bookkeeping nor a field of `RunRecord`."""
    return key not in (*CHOICES, "model.name", "run_name") and not is_bookkeeping(key)


def changes_the_model(key: str) -> bool:
    """Return whether a key changes the pruned model, not only its measurements or files."""
    return not is_bookkeeping(key) and not key.startswith(("eval.", "checkpoint."))


def flatten(config: Config, choices: Config) -> FlatConfig:
    """Return the settings of a config as texts: "null", "true", "[128, 1024]".

    choices: the chosen options of the config's groups, such as {"compensation": "linear"}. They
        stand for the classes that they name.
    """
    values = flat(config)
    for group, choice in choices.items():
        if group in config and isinstance(choice, str):
            values[group] = choice

    texts = {}
    for key, value in values.items():
        if is_setting(key) and not key.endswith("_target_"):
            texts[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return texts


def varying(configs: Iterable[FlatConfig]) -> dict[str, list[str]]:
    """Return the keys that have more than one value among the configs, with their values, sorted.

    A value with an interpolation is unknown: the config of a run without a report is not resolved.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            if "${" not in value:
                values.setdefault(key, set()).add(value)
    return {key: sorted(values[key], key=_order) for key in sorted(values) if len(values[key]) > 1}


def _order(value: str) -> tuple[bool, float, str]:
    """Return the sort key of a value: numbers come first, by size."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def changes_of_the_model(stored: Config, requested: Config) -> list[str]:
    """Describe each key in which two configs lead to different pruned models."""
    before = flat(stored)
    after = flat(json.loads(to_json(requested)))
    changes = []
    for key in filter(changes_the_model, sorted(before | after)):
        if before.get(key) != after.get(key):
            changes.append(f"{key} is {before.get(key)} there and {after.get(key)} here")
    return changes


def flat(config: Config, separator: str = ".", prefix: str = "") -> Config:
    """Return a nested config as one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    level: Config = {}
    for key, value in config.items():
        if isinstance(value, dict):
            level |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            level[f"{prefix}{key}"] = value
    return level
