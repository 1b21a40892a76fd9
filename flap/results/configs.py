"""Flatten the configs of runs into dotted keys and texts, and find the keys that differ."""

import json
from collections.abc import Iterable
from typing import Any

from flap.storage import to_json

Config = dict[str, Any]  # a config as nested dicts and lists
FlatConfig = dict[str, str]  # for example {"calibration.num_samples": "128"}

# The settings that describe a run in tables. `RunRecord.options` has the other settings that the
# command line of a run changes and that differ between the runs of a study.
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
    """Return whether a key can change results, and is neither in CHOICES nor a name.

    The names are the name of the model and the name of the run.
    """
    return key not in (*CHOICES, "model.name", "run_name") and not is_bookkeeping(key)


def changes_the_model(key: str) -> bool:
    """Return whether a key changes the pruned model, and not only measurements or files."""
    return not is_bookkeeping(key) and not key.startswith(("eval.", "checkpoint."))


def flatten(config: Config, choices: Config) -> FlatConfig:
    """Return the settings of a config as texts, such as "null", "true" or "[128, 1024]".

    choices: the chosen option of each config group, such as {"compensation": "linear"}. The name of
        the option replaces the name of the class (`_target_`) in the config.
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
    """Return the keys whose values differ between the configs, with their sorted values.

    Values with an interpolation are left out. Interpolations occur in runs without a report, whose
    configs are not resolved.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            if "${" not in value:
                values.setdefault(key, set()).add(value)
    return {key: sorted(values[key], key=_order) for key in sorted(values) if len(values[key]) > 1}


def _order(value: str) -> tuple[bool, float, str]:
    """Return the sort key of a value: numbers come first, in ascending order."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def changes_of_the_model(stored: Config, requested: Config) -> list[str]:
    """Describe each key that changes the pruned model and differs between two configs."""
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
