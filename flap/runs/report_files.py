"""The files of a run: its report as JSON and text, the plan, a picture, the own texts; the card of its checkpoint."""

import logging
from pathlib import Path

from flap.allocation import PruningPlan
from flap.checkpoint.card import write_card
from flap.config import one_line
from flap.data import SELF
from flap.models import base_facts
from flap.results import draw_layers, markdown, model_card
from flap.runs.run import Run
from flap.storage import write_text

log = logging.getLogger(__name__)


def write_files(run: Run, plan: PruningPlan, run_dir: Path | None) -> None:
    """Write the files of a run into its folder, if it has one, and the model card into that of the checkpoint."""
    if run_dir is not None:
        _write_report(run, plan, run_dir)
    if run.config.checkpoint.save:
        write_card(run.target, model_card(run.report, run.target, base_facts(run.config.model.path)))


def _write_report(run: Run, plan: PruningPlan, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    for use, windows in run.texts.items():
        for text in (text for text in windows.existing if text.name == SELF):
            write_text(run_dir / f"{SELF}_{use}.jsonl", text.jsonl)
    plan.save(run_dir / "plan.json")
    run.report.save(run_dir / "report.json")
    write_text(run_dir / "report.md", markdown(run.report))
    picture = run_dir / "layers.png"
    try:
        draw_layers(run.report, picture)
    except Exception as error:  # no picture is worth the report of a run
        picture.unlink(missing_ok=True)
        log.warning("%s: cannot be drawn (%s)", picture, one_line(error))
