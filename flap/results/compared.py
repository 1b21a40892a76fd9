"""Read what is to be compared: runs, checkpoints and plans."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from flap.allocation import PruningPlan
from flap.checkpoint.save import LABEL
from flap.evaluation.kept import Kept, kept_documents
from flap.reporting import Report
from flap.storage.status import STATUS, read_state, read_status

EXPECTED = "expected the folder of a finished run, a checkpoint or a plan.json"


@dataclass(frozen=True)
class Subject:
    """One side of the comparison, with its letter. A checkpoint has no report; a plan has neither report nor config."""

    letter: str
    path: Path
    plan: PruningPlan
    provenance: dict[str, Any] = field(default_factory=dict)  # config, versions, git
    report: Report | None = None
    documents: Kept = field(default_factory=dict)  # of the pruned model

    @property
    def config(self) -> dict[str, Any]:
        """The config; empty for a plan."""
        return dict(self.provenance.get("config", {}))

    @property
    def versions(self) -> dict[str, str]:
        """The versions of Python and of the libraries that made it; empty for a plan."""
        return dict(self.provenance.get("versions", {}))

    @property
    def kind(self) -> str:
        """What it is: run, checkpoint or plan."""
        return "run" if self.report else "checkpoint" if self.provenance else "plan"


def read(paths: Sequence[Path]) -> list[Subject]:
    """Return the subjects, with the letters A, B, C …

    Raises:
        ValueError: there are fewer than two or more than 26, or one of them is no finished run, checkpoint or plan.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise ValueError(f"{len(paths)} to compare; expected 2 to {len(ascii_uppercase)} runs, checkpoints or plans")
    return [_read(letter, path) for letter, path in zip(ascii_uppercase, paths, strict=False)]


def _read(letter: str, path: Path) -> Subject:
    if path.is_file():
        return Subject(letter, path, _plan(_json(path), path))
    if (path / STATUS).is_file() or (path / "report.json").is_file():
        return _run(letter, path)
    if (path / LABEL).is_file():
        label = _json(path / LABEL)
        return Subject(letter, path, _plan(label.get("plan"), path / LABEL), dict(label.get("provenance") or {}))
    runs = sorted(status.parent for status in path.glob(f"*/{STATUS}"))
    if runs:
        finished = [run for run in runs if read_state(run) == "finished"]
        named = f"as {finished[0]}" if finished else "once they have finished: none has"
        raise ValueError(f"{path}: a folder of runs; name those to compare, {named}")
    raise ValueError(f"{path}: {'no run in it' if path.is_dir() else 'no such file or folder'}; {EXPECTED}")


def _run(letter: str, folder: Path) -> Subject:
    status = read_status(folder)
    if (state := status.get("state", "finished")) != "finished":
        why = f"failed ({status.get('error')})" if state == "failed" else "has not finished: still running, or killed"
        raise ValueError(f"{folder}: the run {why}; {EXPECTED}")
    report = Report.load(folder / "report.json")
    plan = _plan(_json(folder / "plan.json"), folder / "plan.json")
    documents = kept_documents(folder, report.evaluation["pruned"])
    return Subject(letter, folder, plan, report.provenance, report, documents)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON object ({type(error).__name__}); {EXPECTED}") from error


def _plan(content: Any, path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_dict(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: holds no plan; {EXPECTED}") from error
