"""Find a finished run of the same config, which need not run again."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flap.checkpoint.save import label_of
from flap.results.configs import changes_of_the_model, differences
from flap.results.report import Report
from flap.storage import read_json, to_json
from flap.storage.status import read_state

log = logging.getLogger(__name__)


def finished_run(folder: Path, siblings: Iterable[Path], config: dict[str, Any]) -> tuple[Path, Report] | None:
    """Return the folder and report of a finished run of this config, in `folder` or in one of `siblings`; else None.

    A run that differs only in its evaluation does not count: it runs again and measures what is missing. Nor does one
    whose checkpoint is not there any more.

    Raises:
        ValueError: the folder holds a finished run of another config or of another version.
    """
    for run_dir in (folder, *siblings):
        if read_state(run_dir) != "finished":
            continue
        report = Report.load(run_dir / "report.json")
        found = differences(report.config, config)
        if not found:
            if _has_checkpoint(run_dir, report):
                return run_dir, report
            log.info("%s: its checkpoint is not there, or is that of another run", run_dir)
        elif run_dir == folder and (others := changes_of_the_model(found)):
            raise ValueError(
                f"{folder}: holds a finished run of another config ({'; '.join(others[:3])}); choose "
                "another folder, or resume=false to replace it"
            )
    return None


def _has_checkpoint(run_dir: Path, report: Report) -> bool:
    """Return whether a finished run has saved no checkpoint, or the one that it has saved is still in its place."""
    if report.checkpoint is None:
        return True
    target = Path(report.config["checkpoint"]["dir"] or run_dir / "checkpoint")
    written = {"provenance": report.provenance, "plan": read_json(run_dir / "plan.json")}
    return label_of(target) == dict(json.loads(to_json(written)))
