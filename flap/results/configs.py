"""Flatten the configs of runs into dicts with dotted keys, and find the keys that differ."""

import json
from collections.abc import Iterable
from typing import Any

from flap.storage import to_json

Config = dict[str, Any]  # a config as nested dicts and lists
# a config with dotted keys and with values as text, such as {"calibration.num_samples": "128"}
FlatConfig = dict[str, str]

# Each of these settings has its own column in tables of runs. All other settings share the column
# "options" (`RunRecord.options`). This column shows a setting if the run's command line sets it and
# its value differs between the runs in the table.
CHOICES = ("model", "method", "metric", "structure", "ratio", "seed")
# Config keys and config sections that do not change the results of a run.
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
    """Return whether a config key, such as "tracking.project", leaves a run's results unchanged."""
    return key in BOOKKEEPING or key.partition(".")[0] in BOOKKEEPING


def is_setting(key: str) -> bool:
    """Return whether a config key can change results and is not in CHOICES.

    The keys `model.name` and `run_name` are only names, so they do not change results.
    """
    return key not in (*CHOICES, "model.name", "run_name") and not is_bookkeeping(key)


def changes_the_model(key: str) -> bool:
    """Return whether the value of this config key may change the pruned model.

    This is false for the keys in BOOKKEEPING and in the sections `eval` and `checkpoint`, which
    change only measurements or files. It is true for all other keys.
    """
    return not is_bookkeeping(key) and not key.startswith(("eval.", "checkpoint."))


def flatten(config: Config, choices: Config) -> FlatConfig:
    """Flatten a config into a dict with dotted keys and with values as text.

    Values are, for example, "null", "true" or "[128, 1024]". Keys that cannot change results, the
    keys in CHOICES, and the class names (`_target_`) of config groups are left out.

    choices: the chosen option of each config group, such as {"compensation": "linear"}. The names
        of these options become the values of the groups in the result.
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
    """Return the keys whose values differ between the configs, each with its sorted values.

    Values that contain an interpolation ("${…}") are left out. They occur only in the configs of
    runs without a report, because these configs are stored before interpolations are resolved.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            if "${" not in value:
                values.setdefault(key, set()).add(value)
    return {key: sorted(values[key], key=_order) for key in sorted(values) if len(values[key]) > 1}


def _order(value: str) -> tuple[bool, float, str]:
    """Return a sort key for a value. Numbers come before other texts, in ascending order."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def changes_of_the_model(stored: Config, requested: Config) -> list[str]:
    """Describe each difference between two configs that may change the pruned model.

    stored: the config of a finished run in a folder. requested: the config of the run that would
        use this folder.
    """
    before = flat(stored)
    after = flat(json.loads(to_json(requested)))
    changes = []
    for key in filter(changes_the_model, sorted(before | after)):
        if before.get(key) != after.get(key):
            changes.append(f"{key} is {before.get(key)} there and {after.get(key)} here")
    return changes


def flat(config: Config, separator: str = ".", prefix: str = "") -> Config:
    """Return a nested config as a dict of one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    level: Config = {}
    for key, value in config.items():
        if isinstance(value, dict):
            level |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            level[f"{prefix}{key}"] = value
    return level
