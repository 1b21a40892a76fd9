"""The pruned model of a run, with its plan, report and checkpoint, and the files that store them.

A plan lists the units (heads, neurons or experts) that stay in each layer. `python -m flap` may be
invoked several times for the same run, for example again after an interruption. A later invocation
uses the results that an earlier invocation has stored.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from flap.checkpoint.save import label_of
from flap.method.allocation import PruningPlan
from flap.models import PlacedModel
from flap.results import Report
from flap.runs.run import Run
from flap.storage import Artefact, Key, Label, Store, read_json, to_json, write_text
from flap.storage.artefacts import file_sha256
from flap.storage.atomic_files import remove_leftovers

log = logging.getLogger(__name__)

PLAN = "plan.json"
MADE = "pruned.json"  # the file that marks the pruned model in a run's folder as complete


@dataclass
class Pruned:
    """A pruned model, in memory or as a checkpoint."""

    plan: PruningPlan
    report: Report  # the report of the run, still without the results of evaluation tasks
    # the tokens of a trimmed vocabulary; empty if the vocabulary was not trimmed
    tokens: list[str] = field(default_factory=list)
    # The pruned model, if this invocation of the run has made the model. None if an earlier
    # invocation has made and stored the model.
    model: PlacedModel | None = None
    # A copy of the run for later stages, which also contains the texts that the model has
    # generated. None if an earlier invocation has made the pruned model.
    run: Run | None = None


@dataclass(frozen=True)
class PrunedFiles(Store[Pruned]):
    """Stores a run's pruned model: plan.json, pruned.json, and the checkpoint if there is one."""

    folder: Path
    checkpoint: Path | None  # folder of the checkpoint; None if the run saves no checkpoint

    def find(self, key: Key) -> Artefact[Pruned] | None:
        """Return the pruned model of the run with this key, or None.

        The result is None if the folder contains no pruned model, or the pruned model of another
        run. The result is also None if the plan or the checkpoint is missing or was replaced.
        """
        made = read_json(self.folder / MADE)
        plan_file = self.folder / PLAN
        try:
            if made["key"] != key["run"] or made["plan_sha256"] != file_sha256(plan_file):
                return None
            label = Label.from_dict(made["label"])
            report = Report.from_dict(made["report"])
            pruned = Pruned(PruningPlan.load(plan_file), report, made["tokens"])
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None

        if self.checkpoint is not None:
            # if a process was killed while it replaced the checkpoint, restore the old checkpoint
            remove_leftovers(self.checkpoint)
            if label_of(self.checkpoint).get("key") != key["run"]:
                log.info("%s: its checkpoint is gone, or belongs to another run", self.folder)
                return None
        return Artefact(pruned, label)

    def keep(self, key: Key, artefact: Artefact[Pruned]) -> bool:
        """Write plan.json and then pruned.json, which marks the pruned model as complete.

        If plan.json already contains the same plan, the file is not written again.
        """
        pruned = artefact.value
        plan_file = self.folder / PLAN
        if read_json(plan_file) != pruned.plan.to_dict():
            pruned.plan.save(plan_file)
        made = {
            "key": key["run"],
            "plan_sha256": file_sha256(plan_file),
            "label": artefact.label.to_dict(),
            "report": pruned.report.to_dict(),
            "tokens": pruned.tokens,
        }
        write_text(self.folder / MADE, to_json(made, indent=1) + "\n")
        return True


def pruned_files(run: Run) -> list[PrunedFiles]:
    """Return a list with the `PrunedFiles` of a run; an empty list if the run has no folder."""
    if run.run_dir is None:
        return []
    return [PrunedFiles(run.run_dir, run.target if run.config.checkpoint.save else None)]
