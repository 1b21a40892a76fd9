"""Find a finished run of the same config, which need not run again."""

import glob
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flap.checkpoint.save import label_of
from flap.config import folder_name
from flap.results.configs import changes_of_the_model, differences
from flap.results.report import Report
from flap.storage import read_json, to_json
from flap.storage.status import read_state

log = logging.getLogger(__name__)


def done_already(run_dir: Path, config: dict[str, Any], inputs: dict[str, str], in_sweep: bool) -> bool:
    """Return whether a run has finished before, here or in a cell beside, on the same inputs; say where."""
    named = f"*_{glob.escape(folder_name(config['run_name']))}"  # the same cell, which may have another job number
    cells = sorted(run_dir.parent.glob(named)) if in_sweep else []
    if (done := finished_run(run_dir, cells, config)) is None:
        return False
    folder, report = done
    if changed := [name for name, value in inputs.items() if report.inputs.get(name) != value]:
        log.info("%s holds a run on other inputs (%s), which runs again", folder, ", ".join(changed))
    else:
        log.info("done already, in %s (resume=false runs it again)", folder)
    return not changed


def finished_run(folder: Path, siblings: Iterable[Path], config: dict[str, Any]) -> tuple[Path, Report] | None:
    """Return the folder and report of a finished run of this config, in `folder` or in one of `siblings`; else None.

    A run that has not measured or saved all that is asked for does not count: it runs again and adds what is missing.
    Nor does one whose checkpoint is not there any more.

    Raises:
        ValueError: the folder holds a finished run of another config or of another version.
    """
    for run_dir in (folder, *siblings):
        if read_state(run_dir) != "finished":
            continue
        report = Report.load(run_dir / "report.json")
        evaluators = {name: options for name, options in report.config["eval"].items() if name in config["eval"]}
        different = differences(report.config | {"eval": evaluators}, config)
        if not different:
            if report.checkpoint is None or checkpoint_of(run_dir, report):
                return run_dir, report
            log.info("%s: its checkpoint is not there, or is that of another run", run_dir)
        elif run_dir == folder and (others := changes_of_the_model(different)):
            raise ValueError(
                f"{folder}: holds a finished run of another config ({'; '.join(others[:3])}); choose "
                "another folder, or resume=false to replace it"
            )
    return None


def checkpoint_of(run_dir: Path, report: Report) -> Path | None:
    """Return the folder of the checkpoint that a finished run has saved; None if it has not, or another one is there.

    More may have been measured since, which is in the report alone.
    """
    target = Path(report.config["checkpoint"]["dir"] or run_dir / "checkpoint")
    provenance = {"config": report.config, "versions": report.versions, "git": report.git}
    label, made = label_of(target), dict(json.loads(to_json(provenance)))
    written = label.get("provenance", {})
    same_model = not changes_of_the_model(differences(written.get("config", {}), made["config"]))
    same_code = [written.get(name) for name in ("versions", "git")] == [made["versions"], made["git"]]
    same_plan = label.get("plan") == read_json(run_dir / "plan.json")
    return target if report.checkpoint and same_model and same_code and same_plan else None
