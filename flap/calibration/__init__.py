"""From text to channel statistics."""

from flap.calibration.collect import LayerStatistics, collect, collect_layerwise
from flap.calibration.data import Text, calibration_windows, evaluation_windows, read_text
from flap.calibration.statistics import Statistics

__all__ = [
    "LayerStatistics", "Statistics", "Text", "calibration_windows", "collect", "collect_layerwise",
    "evaluation_windows", "read_text",
]  # fmt: skip
