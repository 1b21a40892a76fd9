"""Find a finished run of the same config, which need not run again."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flap.reporting.report import Report
from flap.storage.status import read_state

# keys that do not change the result
BOOKKEEPING = ("cache_dir", "use_cache", "cache_wait_seconds", "resume", "tracking", "dry_run")


def finished_run(folder: Path, siblings: Iterable[Path], config: dict[str, Any]) -> tuple[Path, Report] | None:
    """Return the folder and report of a finished run of this config, in `folder` or in one of `siblings`; else None.

    A run that differs only in its evaluation does not count: it runs again and measures what is missing.

    Raises:
        ValueError: the folder holds a finished run of another config or of another version.
    """
    for run_dir in (folder, *siblings):
        if read_state(run_dir) != "finished":
            continue
        report = Report.load(run_dir / "report.json")
        differences = _differences(report.config, config)
        if not differences:
            return run_dir, report
        pruning_differences = [text for key, text in differences.items() if not key.startswith("eval.")]
        if run_dir == folder and pruning_differences:
            raise ValueError(
                f"{folder}: holds a finished run of another config ({'; '.join(pruning_differences[:3])}); choose "
                "another folder, or resume=false to replace it"
            )
    return None


def changed_inputs(stored: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return the names of the inputs that a stored report does not have, or has with another digest."""
    return [name for name, value in current.items() if stored.get(name) != value]


def _differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in which two configs give different results, each with the difference as text."""
    a, b = (flat(json.loads(json.dumps(config))) for config in (stored, requested))
    keys = [key for key in sorted(a | b) if key.split(".")[0] not in BOOKKEEPING and a.get(key) != b.get(key)]
    return {key: f"{key} is {a.get(key)} there and {b.get(key)} here" for key in keys}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    level: dict[str, Any] = {}
    for key, value in config.items():
        level |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return level
