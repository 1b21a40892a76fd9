"""The comparison as tables: configs, numbers, costs and plans, with the notes that stand on top."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from flap.reporting.resume import BOOKKEEPING, flat
from flap.results.compared import Subject
from flap.results.compared_numbers import costs, measured
from flap.results.tables import Entry, Table
from flap.results.unit_overlap import Layers, by_layer, overlaps


@dataclass(frozen=True)
class Comparison:
    """All that is said of the subjects, for the console and for the page."""

    subjects: Sequence[Subject]
    notes: list[str]
    tables: list[Table]
    layers: Layers


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Return the comparison of two subjects or more; differences are to the first one."""
    layers = by_layer(subjects)
    tables = [_config(subjects), measured(subjects), costs(subjects), overlaps(subjects, layers)]
    return Comparison(subjects, list(_notes(subjects)), [table for table in tables if table.rows or table.note], layers)


def _config(subjects: Sequence[Subject]) -> Table:
    """Return the table of the config keys that differ."""
    known = [subject for subject in subjects if subject.config]
    configs = [_chosen(flat(subject.config)) for subject in known]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if not _is_name(key)]
    rows = [
        (Entry(key), *(Entry(_value(config, key)) for config in configs))
        for key in keys
        if any(_value(a, key) != _value(b, key) for a, b in pairwise(configs))
    ]
    note = "" if rows else "No difference." if len(known) > 1 else "Fewer than two of them have a config."
    return Table("Config", ("", *(subject.letter for subject in known)), rows, note)


def _chosen(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with its choices as words: {"metric": "WIFV"} for {"metric._target_": "flap.importance.WIFV"}."""
    classes = {key: value.rpartition(".")[2] for key, value in config.items() if key.endswith("._target_")}
    return {key.removesuffix("._target_"): classes.get(key, value) for key, value in config.items()}


def _is_name(key: str) -> bool:
    """Return whether a key names a run or is bookkeeping, and does not change its result."""
    return key in ("run_name", "checkpoint.dir") or key.split(".")[0] in BOOKKEEPING


def _value(config: dict[str, Any], key: str) -> str:
    value = config.get(key, "")
    return value if isinstance(value, str) else json.dumps(value)


def _notes(subjects: Sequence[Subject]) -> Iterator[str]:
    """Yield a sentence for each thing besides the config that should be equal and is not."""
    for name, what in _provenance(subjects):
        groups: dict[str, list[str]] = {}
        for subject in subjects:
            if value := what(subject):
                groups.setdefault(value, []).append(subject.letter)
        if len(groups) > 1:
            told = "; ".join(f"{', '.join(letters)}: {value}" for value, letters in groups.items())
            yield f"Different {name}. {told}."


def _provenance(subjects: Sequence[Subject]) -> Iterator[tuple[str, Callable[[Subject], str]]]:
    """Yield what should be equal: its name, and a function that returns it of a subject, empty if it is unknown."""
    yield "models", lambda subject: str(subject.config.get("model", {}).get("name", ""))
    libraries = dict.fromkeys(library for subject in subjects for library in subject.versions)
    for library in libraries:
        yield f"versions of {library}", partial(_version, library)
    yield "commits", lambda subject: str((subject.provenance.get("git") or {}).get("commit") or "")
    yield "devices", lambda subject: subject.report.device if subject.report else ""


def _version(library: str, subject: Subject) -> str:
    return subject.versions.get(library, "")
