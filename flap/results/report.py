"""The report of a run: how it is stored in report.json, and how a notebook shows it."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from flap.results.configs import Config
from flap.results.record import SCHEMA, Record
from flap.results.report_tables import tables
from flap.storage.atomic_files import write_text
from flap.storage.json_files import infinite, load_json, to_json

# The keys that a valid report.json must have, and the types of their values.
NEEDED = {
    "config": dict,
    "device": str,
    "sources": dict,
    "warnings": list,
    "parameters": dict,
    "ratio": dict,
    "layers": list,
    "layers_before": list,
    "evaluation": dict,
    "versions": dict,
    "git": dict,
}
# The keys whose values contain measured numbers, such as perplexities. In these numbers, null
# stands for infinity.
MEASURED = ("target", "recovery", "evaluation", "difference_stderr", "difference_p_value")


@dataclass
class Report(Record):
    """The report of a run.

    `pandas.DataFrame(report.evaluation)` returns a table of the measured numbers, such as
    perplexities.
    """

    def _repr_markdown_(self) -> str:
        """Return the tables of the report in Markdown, for a notebook to show."""
        return "\n\n".join(table.markdown() for table in tables(self))

    def __str__(self) -> str:
        return self._repr_markdown_()

    def to_dict(self) -> Config:
        """Return the content of report.json.

        The list of the heads, neurons or experts that stay is left out, because it is in plan.json.
        """
        return asdict(replace(self, plan=None))

    @classmethod
    def from_dict(cls, plain: Config) -> "Report":
        """Build a report from the dict that `to_dict` returns.

        In the measured numbers (MEASURED), None stands for infinity.
        """
        known = {part.name: plain[part.name] for part in fields(cls) if part.name in plain}
        measured = {part: infinite(known[part]) for part in MEASURED if part in known}
        return cls(**known | measured)

    def save(self, path: Path) -> None:
        """Write report.json. Numbers that are not finite, such as infinity, become null."""
        write_text(path, to_json(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read report.json. In the measured numbers (MEASURED), null stands for infinity.

        Raises:
            ValueError: the file is missing or damaged, has another schema, or lacks a required key.
        """
        try:
            plain = dict(load_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read ({type(error).__name__})") from error
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {plain.get('schema')}, this version reads {SCHEMA}")
        invalid = [part for part, kind in NEEDED.items() if not isinstance(plain.get(part), kind)]
        if invalid:
            raise ValueError(f"{path}: has no valid {', '.join(invalid)}")
        plain["evaluation"] = {"dense": {}, "pruned": {}, **plain["evaluation"]}
        return cls.from_dict(plain)
