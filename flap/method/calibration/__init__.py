"""Calibration: run the model on the calibration windows, and collect statistics of its channels.

A window is a sequence of tokens of a calibration text. A channel is an input of an output
projection, which is the last matrix of an attention or an MLP.
"""

from flap.method.calibration.calibrate import Calibration, Visits
from flap.method.calibration.statistics import (
    STATISTICS,
    LayerStatistics,
    Statistics,
)

__all__ = [
    "STATISTICS",
    "Calibration",
    "LayerStatistics",
    "Statistics",
    "Visits",
]
