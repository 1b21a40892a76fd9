"""The pruned model of a run as an artefact: the plan, what the report says of how it was made, and the checkpoint."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flap.checkpoint.save import label_of
from flap.method.allocation import PruningPlan
from flap.models import PlacedModel
from flap.results.provenance import git_state, versions
from flap.runs.run import Run
from flap.storage import Artefact, Key, Label, Store, read_json, to_json, write_text
from flap.storage.artefacts import file_sha256
from flap.storage.atomic_files import remove_leftovers

log = logging.getLogger(__name__)

PLAN = "plan.json"
MADE = "pruned.json"  # of a run's folder: its pruned model is whole


@dataclass(kw_only=True)
class Making:
    """What the report says of how a pruned model was made."""

    config: dict[str, Any]  # the config of the run that made it
    device: str  # the device that the model ran on
    dtype: str  # the type of the weights
    device_map: dict[str, str]  # the device of each module, with model.placement=auto
    processes: list[str]  # the device of each process and its machine; empty: one process
    sources: dict[str, str]  # the origins of the model and the texts
    inputs: dict[str, str]  # digests of what the config does not hold
    warnings: list[str]
    parameters_before: int  # of the dense model, tied tensors counted once
    parameters_after: int = 0  # of the pruned model
    idle_after: int = 0  # parameters of experts that a token is not sent to
    weight_passes: int = (
        0  # times that pruning went over the weights, from calibration to compression
    )
    bos: dict[str, bool] = field(default_factory=dict)  # whether calibration windows begin with BOS
    own_text: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what the model wrote, by use
    vocabulary: dict[str, float] = field(default_factory=dict)  # facts about a trimmed vocabulary
    tokens: list[str] = field(default_factory=list)  # that stay in a trimmed vocabulary
    fits: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # of linear compensation, by block
    loads_with: str = ""  # what is needed to load the model, and why
    recovery: dict[str, Any] = field(default_factory=dict)  # facts about training after compression
    peak_memory_bytes: dict[str, int | None] = field(default_factory=dict)  # of "host" and "device"
    checkpoint: str | None = None  # the folder of the checkpoint; None: not saved
    versions: dict[str, str] = field(default_factory=versions)
    git: dict[str, Any] = field(default_factory=git_state)


@dataclass
class Pruned:
    """A pruned model."""

    plan: PruningPlan
    making: Making
    model: PlacedModel | None = None  # None: an earlier start of the run has made it
    run: Run | None = (
        None  # as it goes on, with its own texts and a trimmed vocabulary; None: not known
    )


@dataclass(frozen=True)
class PrunedFiles(Store[Pruned]):
    """The pruned model in a run's folder: plan.json, pruned.json, and the checkpoint if it is saved."""

    folder: Path
    checkpoint: Path | None  # None: the run saves none

    def find(self, key: Key) -> Artefact[Pruned] | None:
        """Return the pruned model, unless it is another one, or its plan or its checkpoint is gone or was replaced."""
        made = read_json(self.folder / MADE)
        plan_file = self.folder / PLAN
        try:
            if made["key"] != key["run"] or made["plan_sha256"] != file_sha256(plan_file):
                return None
            label = Label.from_dict(made["label"])
            pruned = Pruned(PruningPlan.load(plan_file), Making(**made["making"]))
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None

        if self.checkpoint is not None:
            remove_leftovers(self.checkpoint)  # puts back what a killed process had moved aside
            if label_of(self.checkpoint).get("key") != key["run"]:
                log.info("%s: its checkpoint is gone, or is that of another run", self.folder)
                return None
        return Artefact(pruned, label)

    def keep(self, key: Key, artefact: Artefact[Pruned]) -> bool:
        """Write plan.json and then pruned.json, which says that the pruned model is whole.

        A file with the same plan is left as it is: an earlier start has written it.
        """
        plan_file = self.folder / PLAN
        if read_json(plan_file) != artefact.value.plan.to_dict():
            artefact.value.plan.save(plan_file)
        made = {
            "key": key["run"],
            "plan_sha256": file_sha256(plan_file),
            "label": artefact.label.to_dict(),
            "making": asdict(artefact.value.making),
        }
        write_text(self.folder / MADE, to_json(made, indent=1) + "\n")
        return True
