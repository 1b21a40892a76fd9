"""The estimate of a run: memory, disk, passes, operations and tokens of each stage, before a weight is read."""

from flap.estimation.estimate import Estimate, StageEstimate, estimate_run
from flap.estimation.room import Room, check_fits
from flap.estimation.table import lines
from flap.estimation.work import Place, Texts, Training, Work

__all__ = [
    "Estimate", "Place", "Room", "StageEstimate", "Texts", "Training", "Work", "check_fits", "estimate_run",
    "lines",
]  # fmt: skip
