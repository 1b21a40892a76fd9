"""What results depend on: the model, its windows, and what is done to it. Equal keys, equal results."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flap.config import FlapConfig
from flap.data import SELF, Windows
from flap.method.allocation import Given, PruningPlan
from flap.method.calibration import STATISTICS_VERSION
from flap.method.calibration.own_text import WRITTEN_VERSION
from flap.method.importance import SCORES_VERSION
from flap.method.search import Search
from flap.models import ModelSource
from flap.results import described, device_name
from flap.runs.choices import Choices
from flap.storage import digest, ranks

Key = dict[str, Any]

FITS_VERSION = 4  # raise it when compensation fits other weights or biases
RECOVERY_VERSION = 10  # raise it when the training gives other weights
DIVERGENCES_VERSION = 11  # raise it when the measurement or the fits change
WORKSPACE_VERSION = 3  # raise it when a run's working files have other names or contents
DECIDING = (  # of the plan
    "metric", "structure", "compensation", "ratio", "target", "mask_only", "calibration", "vocabulary",
    "plan",
)  # fmt: skip


@dataclass(frozen=True)
class CacheKeys:
    """The parts of the keys by which a run's results are stored, each with all that it depends on and nothing else."""

    config: FlapConfig
    choices: Choices
    source: ModelSource
    texts: Mapping[str, Windows]
    vocabulary: str = ""  # a digest of the new tokenizer; empty: it is the old one

    @property
    def windows(self) -> Key:
        """Calibration windows and units, on which statistics depend besides the model."""
        units: Key = {"units": "experts"} if self.choices.structure.experts else {}
        if "calibration" not in self.texts:
            return units
        windows = self.texts["calibration"]
        own = (
            {"written": WRITTEN_VERSION}
            if any(part.dataset == SELF for part in windows.parts)
            else {}
        )
        return {"version": STATISTICS_VERSION, **windows.key, **own, **units}

    @property
    def statistics(self) -> Key:
        """The model and what its statistics are taken on; a text of its own is another one on each device, too."""
        return (
            self.source.fingerprint
            | self.windows
            | {"device": self.source.device.type}
            | self.processes
        )

    @property
    def scores(self) -> Key | None:
        """The key of scores, for any ratio. A search's depend on its trials; None: made anew from plain statistics."""
        metric = self.choices.metric
        structure = self.choices.structure
        options = described(self.config)
        scores = {"scores": SCORES_VERSION, "metric": options["metric"]}
        if isinstance(structure, Search):
            trials = {"tokens": structure.tokens, "levels": structure.levels}
            scores |= {"trials": trials, "search": DIVERGENCES_VERSION}
            scores["compensation"] = options["compensation"]
        elif not metric.needs_covariance:
            return None
        return {**self.statistics, **self.choices.code, **scores}

    @property
    def processes(self) -> Key:
        """How many processes add up what they have found, which is rounded otherwise than in one."""
        return {"processes": ranks.size()} if ranks.size() > 1 else {}

    @property
    def counted(self) -> Key:
        """The texts whose tokens are counted, whole and not in windows; empty if all tokens stay."""
        texts = (
            self.texts.get("vocabulary", self.texts.get("calibration"))
            if self.choices.vocabulary
            else None
        )
        return {"counted": [text.sha256 for text in texts.existing]} if texts else {}

    @property
    def dense(self) -> Key:
        """The dense model where it is measured."""
        return {"model": self.source.fingerprint, "device": self.source.device.type}

    @property
    def timed(self) -> Key:
        """What times depend on besides the model: two GPUs of one type have others."""
        return {"device": device_name(self.source.device), "threads": torch.get_num_threads()}

    @property
    def recovery(self) -> Key:
        """The training after compression; empty if there is none."""
        if self.choices.recovery is None:
            return {}
        options = asdict(self.choices.recovery)
        windows = self.texts[self.choices.recovery.use].key
        return {
            "recover": {
                "version": RECOVERY_VERSION,
                **options,
                "windows": windows,
                **self.processes,
            }
        }

    def compressed(self, plan: PruningPlan) -> Key:
        """The part that tells this compressed model from others of the same dense model."""
        options = described(self.config)
        return {
            "plan": digest(plan.to_dict()),
            "fits": FITS_VERSION,
            "calibration": self.windows,
            **self.processes,
            **self.choices.code,
            **{name: options[name] for name in ("compensation", "mask_only")},
            "propagate": self.config.calibration.propagate,
            **({"vocabulary": self.vocabulary} if self.vocabulary else {}),
        }

    def pruned(self, plan: PruningPlan) -> Key:
        """The same for the model that a run saves, which may be trained."""
        return self.compressed(plan) | self.recovery

    @property
    def workspace(self) -> Key:
        """The work that an interrupted run goes on with."""
        options = described(self.config)
        versions = [
            WORKSPACE_VERSION, STATISTICS_VERSION, SCORES_VERSION, DIVERGENCES_VERSION, FITS_VERSION, WRITTEN_VERSION,
        ]  # fmt: skip
        decided = {name: options[name] for name in DECIDING}
        return (
            self.statistics
            | self.counted
            | self.recovery
            | self.choices.code
            | {"versions": versions}
            | decided
        )

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of all that is not in the config and changes the pruned model: weights, texts, libraries, fits."""
        calibration = (
            {"calibration": digest(self.texts["calibration"].key)}
            if "calibration" in self.texts
            else {}
        )
        calibration |= {"vocabulary": digest(self.counted)} if self.counted else {}
        recovery = {use: digest(key) for use, key in self.recovery.items()}
        fits = {"fits": str(FITS_VERSION)} | self.choices.code
        if isinstance(self.choices.structure, Given):
            fits["plan"] = digest(self.choices.structure.plan.to_dict())
        return {"model": digest(self.source.fingerprint), **fits, **calibration, **recovery}
