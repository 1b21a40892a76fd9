"""Calibration: the statistics of each layer's channels over the calibration windows."""

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
