"""The keys of what a job stores: results with equal keys are shared by all runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flap.allocation import PruningPlan, Search
from flap.calibration import STATISTICS_VERSION
from flap.calibration.images import Images
from flap.calibration.writing import WRITTEN_VERSION
from flap.config import FlapConfig
from flap.data import SELF, Windows
from flap.importance import SCORES_VERSION
from flap.jobs.choices import Choices
from flap.models import Given, Source
from flap.reporting import described, device_name
from flap.storage import digest

Key = dict[str, Any]

FITS_VERSION = 3  # raise it when compensation fits other weights or biases
RECOVERY_VERSION = 4  # raise it when the training gives other weights
DIVERGENCES_VERSION = 9  # raise it when the measurement or the fits change
WORKSPACE_VERSION = 1  # raise it when a run's working files have other names or contents
DECIDING = ("metric", "structure", "compensation", "ratio", "target", "mask_only", "calibration")  # of the plan


@dataclass(frozen=True)
class CacheKeys:
    """The keys of a job's results. Each has all that the result depends on, and nothing else."""

    config: FlapConfig
    choices: Choices
    source: Source | Given
    texts: Mapping[str, Windows]
    images: Images | None = None

    @property
    def windows(self) -> Key:
        """Calibration windows and units, on which statistics depend besides the model."""
        units: Key = {"units": "experts"} if self.choices.structure.experts else {}
        units |= self.images.key if self.images else {}
        if "calibration" not in self.texts:
            return units
        windows = self.texts["calibration"]
        writes = any(part.dataset == SELF for part in windows.parts)  # on each device another text
        own = {"written": WRITTEN_VERSION, "written_on": self.source.device.type} if writes else {}
        return {"version": STATISTICS_VERSION, **windows.key, **own, **units}

    @property
    def statistics(self) -> Key:
        """The model and what its statistics are taken on."""
        return self.source.fingerprint | self.windows

    def written(self, draft: Key, device: torch.device) -> Key:
        """A text that the model writes itself. draft: what it is asked for."""
        return {**self.source.fingerprint, "device": device.type, **draft}

    def layer_times(self, device: torch.device) -> Key:
        """Times of the model's layers, measured on a device."""
        return self.source.fingerprint | {"device": device_name(device)}

    def dense(self, device: torch.device) -> Key:
        """The dense model where it is measured."""
        return {"model": self.source.fingerprint, "device": device.type}

    def trials(self, plans: Sequence[PruningPlan], num_tokens: int) -> Key:
        """Plans whose divergences are measured, among those of one run."""
        return {"plans": digest([plan.to_dict() for plan in plans]), "num_tokens": num_tokens}

    def divergences(self, trials: Key, device: torch.device) -> Key:
        """Divergences of plans, among those of all runs."""
        compensation = described(self.config)["compensation"]
        measurement = {"search": DIVERGENCES_VERSION, "compensation": compensation, "device": device.type}
        return trials | self.statistics | measurement

    def scores(self, device: torch.device) -> Key:
        """Scores of all units, for any ratio; a search's have the divergences of its trials."""
        search, metric = self.choices.structure, described(self.config)["metric"]
        key = self.statistics | {"scores": SCORES_VERSION, "metric": metric, "device": device.type}
        if not isinstance(search, Search):
            return key
        trials = {
            "tokens": search.tokens,
            "levels": search.levels,
            "whole": [not search.min_heads, not search.min_neurons],
        }
        return self.divergences({"trials": trials}, device) | key

    @property
    def recovery(self) -> Key:
        """The training after compression; empty if there is none."""
        if self.choices.recovery is None:
            return {}
        options, windows = asdict(self.choices.recovery), self.texts["recovery"].key
        return {"recover": {"version": RECOVERY_VERSION, **options, "windows": windows}}

    def compressed(self, plan: PruningPlan) -> Key:
        """The part that tells this compressed model from others of the same dense model."""
        options = described(self.config)
        return {
            "plan": digest(plan.to_dict()),
            "fits": FITS_VERSION,
            "calibration": self.windows,
            **{name: options[name] for name in ("compensation", "mask_only")},
            "propagate": self.config.calibration.propagate,
        }

    def pruned(self, plan: PruningPlan) -> Key:
        """The same for the model that a run saves, which may be trained."""
        return self.compressed(plan) | self.recovery

    @property
    def workspace(self) -> Key:
        """The work that an interrupted run goes on with."""
        options = described(self.config)
        versions = [
            WORKSPACE_VERSION,
            STATISTICS_VERSION,
            SCORES_VERSION,
            DIVERGENCES_VERSION,
            FITS_VERSION,
            WRITTEN_VERSION,
        ]
        made_by = {"versions": versions, "device": self.source.device.type}
        return self.statistics | self.recovery | made_by | {name: options[name] for name in DECIDING}

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of all that is not in the config and changes the pruned model: weights, texts, libraries, fits."""
        calibration = {"calibration": digest(self.texts["calibration"].key)} if "calibration" in self.texts else {}
        calibration |= {"images": digest(self.images.key)} if self.images else {}
        recovery = {use: digest(key) for use, key in self.recovery.items()}
        return {"model": digest(self.source.fingerprint), "fits": str(FITS_VERSION), **calibration, **recovery}
