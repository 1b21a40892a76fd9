"""The report of a run: its file report.json, and how a notebook shows it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flap.results.record import SCHEMA, Record
from flap.results.report_tables import tables
from flap.storage.atomic_files import write_text
from flap.storage.json_files import infinite, load_json, to_json

NEEDED: dict[str, Any] = {  # parts of a report.json
    "config": dict, "device": str, "sources": dict, "warnings": list, "parameters.total_before": int,
    "parameters.total_after": int, "ratio.realised_decoder": (int, float), "layers": list, "layers_before": list,
    "evaluation.dense": dict, "evaluation.pruned": dict, "versions": dict,
    "git.commit": str | None, "git.dirty": bool | None,
}  # fmt: skip
MEASURED = ("target", "recovery", "evaluation", "difference_stderr", "difference_p_value")


@dataclass
class Report(Record):
    """The report of a run. `pandas.DataFrame(report.evaluation)` has its numbers."""

    def _repr_markdown_(self) -> str:
        """Return the tables of the report, which a notebook shows."""
        return "\n\n".join(table.markdown() for table in tables(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as report.json holds it, without the plan, which is in plan.json."""
        return asdict(replace(self, plan=None))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Report":
        """Return the report that `to_dict` has written as JSON; null among what was measured becomes infinity."""
        known = {part.name: plain[part.name] for part in fields(cls) if part.name in plain}
        return cls(**known | {part: infinite(known[part]) for part in MEASURED if part in known})

    def save(self, path: Path) -> None:
        """Write report.json; a number that is not finite (an infinite perplexity) becomes null."""
        write_text(path, to_json(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read report.json; null among what was measured becomes infinity.

        Raises:
            ValueError: the file is missing or damaged, has another schema, or lacks a part.
        """
        try:
            return cls.from_dict(read_report(path))
        except ValueError as error:
            raise ValueError(
                f"{path.parent}/{error}; choose another folder, or resume=false to run it again"
            ) from error


def read_report(path: Path) -> dict[str, Any]:
    """Return the content of report.json; null among what was measured becomes infinity.

    Raises:
        ValueError: the file is missing or damaged, has another schema, or lacks a part: says which file, and why.
    """
    try:
        plain = dict(load_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: cannot be read ({type(error).__name__})") from error
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: schema {plain.get('schema')}, this version reads {SCHEMA}")
    inner = {f"{name}.{part}": value for name, section in plain.items() if isinstance(section, dict)
             for part, value in section.items()}  # fmt: skip
    if parts := [
        name
        for name, kind in NEEDED.items()
        if not isinstance((plain | inner).get(name, ...), kind)
    ]:
        raise ValueError(f"{path.name}: has no valid {', '.join(parts)}")
    return plain | {part: infinite(plain[part]) for part in MEASURED if part in plain}
