"""Whether the run that is asked for is there already."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flap.reporting.report import Report
from flap.status import read_state

# what says how a run is done and not what comes out
BOOKKEEPING = ("cache_dir", "use_cache", "cache_wait_seconds", "resume", "tracking")


def finished_run(folder: Path, siblings: Iterable[Path], config: dict[str, Any]) -> tuple[Path, Report] | None:
    """The folder and report of a finished run of this config: in its own folder, or in one beside it.

    A run that was evaluated in another way is not it; it may be run again, and then measures what is missing.

    Raises:
        ValueError: the folder holds a finished run of another config or of another version.
    """
    for place in (folder, *siblings):
        if read_state(place) != "finished":
            continue
        report = Report.load(place / "report.json")
        differences = _differences(report.config, config)
        if not differences:
            return place, report
        pruned_otherwise = [words for key, words in differences.items() if not key.startswith("eval.")]
        if place == folder and pruned_otherwise:
            raise ValueError(
                f"{folder}: holds a finished run of another config ({'; '.join(pruned_otherwise[:3])}); choose "
                "another folder, or resume=false to replace it"
            )
    return None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """The keys in which two configs would give different results, and the difference in words."""
    a, b = (_flat(json.loads(json.dumps(config))) for config in (there, here))
    keys = [key for key in sorted(a | b) if key.split(".")[0] not in BOOKKEEPING and a.get(key) != b.get(key)]
    return {key: f"{key} is {a.get(key)} there and {b.get(key)} here" for key in keys}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
