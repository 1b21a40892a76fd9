"""Find a finished run of the same pruned model, which need not be pruned again."""

import glob
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flap.checkpoint.save import label_of
from flap.config.schema import folder_name
from flap.results.configs import changes_of_the_model, differences
from flap.results.report import Report
from flap.storage import read_json, to_json
from flap.storage.status import read_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run whose pruned model is the one that is asked for."""

    folder: Path
    report: Report
    checkpoint: Path | None  # None: not saved

    def lacks(self, evaluators: Mapping[str, Any]) -> list[str]:
        """Return the names of the evaluators that it has not measured with these options."""
        measured = self.report.config["eval"]
        wanted = {name: {"eval": {name: options}} for name, options in evaluators.items()}
        return [
            name
            for name, one in wanted.items()
            if differences({"eval": {name: measured.get(name)}}, one)
        ]


def finished_run(
    run_dir: Path, config: dict[str, Any], inputs: dict[str, str], in_sweep: bool
) -> FinishedRun | None:
    """Return the finished run of a config on the same inputs, here or in a cell beside; None if there is none.

    Whatever it has measured, and unless the checkpoint that it has saved is not there any more.

    Raises:
        ValueError: the folder holds a finished run of another config or of another version.
    """
    named = f"*_{glob.escape(folder_name(config['run_name']))}"  # the same cell, which may have another job number
    for folder in (run_dir, *(sorted(run_dir.parent.glob(named)) if in_sweep else [])):
        if read_state(folder) != "finished":
            continue
        report = Report.load(folder / "report.json")
        different = differences(report.config | {"eval": config["eval"]}, config)
        if folder == run_dir and (others := changes_of_the_model(different)):
            raise ValueError(
                f"{folder}: holds a finished run of another config ({'; '.join(others[:3])}); choose "
                "another folder, or resume=false to replace it"
            )
        changed = [
            name for name, value in inputs.items() if report.inputs.get(name, value) != value
        ]
        checkpoint = checkpoint_of(folder, report)
        if report.checkpoint and not checkpoint:
            log.info("%s: its checkpoint is not there, or is that of another run", folder)
        elif not different and changed:
            log.info(
                "%s holds a run on other inputs (%s), which runs again", folder, ", ".join(changed)
            )
        elif not different:
            return FinishedRun(folder, report, checkpoint)
    return None


def checkpoint_of(run_dir: Path, report: Report) -> Path | None:
    """Return the folder of the checkpoint that a finished run has saved; None if it has not, or another one is there.

    More may have been measured since, which is in the report alone.
    """
    target = Path(report.config["checkpoint"]["dir"] or run_dir / "checkpoint")
    provenance = {"config": report.config, "versions": report.versions, "git": report.git}
    label = label_of(target)
    made = dict(json.loads(to_json(provenance)))
    written = label.get("provenance", {})
    same_model = not changes_of_the_model(differences(written.get("config", {}), made["config"]))
    same_code = [written.get(name) for name in ("versions", "git")] == [
        made["versions"],
        made["git"],
    ]
    same_plan = label.get("plan") == read_json(run_dir / "plan.json")
    return target if report.checkpoint and same_model and same_code and same_plan else None
