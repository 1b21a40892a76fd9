"""Check whether a run may use its folder, and find the folder of an earlier invocation.

`python -m flap` may be invoked several times for the same run, for example again after an
interruption. In a sweep, an earlier invocation may have used another folder.
"""

import glob
import logging
from pathlib import Path

from flap.config.resolvers import folder_name
from flap.results import Report
from flap.results.configs import changes_of_the_model
from flap.runs import keys
from flap.runs.pruned import MADE
from flap.runs.run import Run
from flap.storage import read_json, read_state

log = logging.getLogger(__name__)


def check_home(run: Run) -> None:
    """Check that the run's folder does not hold a finished run of another config.

    It is no error if the finished run has the same config but other inputs, for example because a
    text file was edited after that run. In this case, a log line says that the run is repeated.

    Raises:
        ValueError: the folder holds a finished run of another config, or this version of flap
            cannot read the report of the finished run.
    """
    folder = run.run_dir
    if folder is None or read_state(folder) != "finished":
        return

    try:
        report = Report.load(folder / "report.json")
    except ValueError as error:
        advice = "choose another folder, or resume=false to run it again"
        raise ValueError(f"{error}; {advice}") from error
    config = run.described
    changes = changes_of_the_model(report.config, config)
    if changes:
        raise ValueError(
            f"{folder}: holds a finished run of another config "
            f"({'; '.join(changes[:3])}); choose another folder, or "
            "resume=false to replace it"
        )
    now = keys.inputs(run)
    changed = [name for name, value in now.items() if report.inputs.get(name, value) != value]
    if changed:
        log.info(
            "%s holds a run on other inputs (%s), which runs again", folder, ", ".join(changed)
        )


def earlier_start(run: Run) -> Path | None:
    """Return the folder in which an earlier invocation of the run has stored the pruned model.

    The function searches the run's folder, and the folders of the same sweep whose names end with
    the name of the run. It returns None if none of these folders has the pruned model of this run.
    """
    assert run.run_dir is not None
    name = glob.escape(folder_name(run.config.run_name))
    for folder in (run.run_dir, *sorted(run.run_dir.parent.glob(f"*_{name}"))):
        if read_json(folder / MADE).get("key") == run.key:
            return folder
    return None
