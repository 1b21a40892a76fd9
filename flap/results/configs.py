"""The configs of runs as dotted keys and texts, {"calibration.num_samples": "128"}, and the keys that differ."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flap.storage import to_json

CHOICES = (
    "model",
    "method",
    "metric",
    "structure",
    "ratio",
    "seed",
)  # other choices that differ are a run's `options`
# what the fields of `RunRecord` say; the names of classes, for which the choices stand; the name of each run
FIELDS = (*CHOICES, "model.name", "run_name")
BOOKKEEPING = (  # keys that do not change the result
    "cache_dir", "use_cache", "cache_wait_seconds", "resume", "tracking", "dry_run", "checkpoint.overwrite",
    "timeout_minutes",
)  # fmt: skip


def is_bookkeeping(key: str) -> bool:
    """Return whether a key of the config, as "tracking.project", does not change the result."""
    return f"{key}.".startswith(tuple(f"{name}." for name in BOOKKEEPING))


def changes_the_model(key: str) -> bool:
    """Return whether a key of the config changes the pruned model, not only its measurements or files."""
    return not is_bookkeeping(key) and not key.startswith(("eval.", "checkpoint."))


def flatten(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a config as text: "null", "true", "[128, 1024]"; without what the fields of `RunRecord` say.

    choices: those of the config's groups, {"compensation": "linear"}, which stand for the classes that they name.
    """
    groups = {
        name: value for name, value in choices.items() if name in config and isinstance(value, str)
    }
    values = {
        key: value for key, value in flat(config).items() if not key.endswith("_target_")
    } | groups
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
        if key not in FIELDS and not is_bookkeeping(key)
    }


def varying(configs: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the keys with more than one value among the configs, and their values, sorted.

    What an interpolation would give is unknown (the config of a run without a report is not resolved).
    """
    values: dict[str, set[str]] = {}
    for key, value in (pair for config in configs for pair in config.items()):
        values.setdefault(key, set()).update(() if "${" in value else {value})
    return {
        key: sorted(texts, key=_order) for key, texts in sorted(values.items()) if len(texts) > 1
    }


def _order(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value  # numbers first, by size
    except ValueError:
        return True, 0.0, value


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in which two configs give different results, each with the difference as text."""
    a, b = (flat(json.loads(to_json(config))) for config in (stored, requested))
    keys = [key for key in sorted(a | b) if not is_bookkeeping(key) and a.get(key) != b.get(key)]
    return {key: f"{key} is {a.get(key)} there and {b.get(key)} here" for key in keys}


def changes_of_the_model(differences: Mapping[str, str]) -> list[str]:
    """Return the texts of the differences that make another model, not only other measurements or files of it."""
    return [
        text for key, text in differences.items() if not key.startswith(("eval.", "checkpoint."))
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    level: dict[str, Any] = {}
    for key, value in config.items():
        level |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return level
