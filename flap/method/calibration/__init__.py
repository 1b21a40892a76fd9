"""Calibration: the statistics of each layer's channels over the calibration windows."""

from flap.method.calibration.calibrate import Calibration, Visits
from flap.method.calibration.statistics import (
    STATISTICS,
    STATISTICS_VERSION,
    LayerStatistics,
    Statistics,
)

__all__ = [
    "STATISTICS",
    "STATISTICS_VERSION",
    "Calibration",
    "LayerStatistics",
    "Statistics",
    "Visits",
]
