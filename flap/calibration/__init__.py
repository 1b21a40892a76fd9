"""From text to channel statistics."""

from flap.calibration.cache import STATISTICS_VERSION, statistics_on_disk
from flap.calibration.collect import LayerStatistics, collect, collect_layerwise, enter_windows, finite, split_windows
from flap.calibration.covariance import collect_covariances
from flap.calibration.data import Text, calibration_windows, evaluation_windows, read_text, tokens_sha256
from flap.calibration.statistics import Moments, Statistics, merge, moments, statistics
from flap.calibration.streamed import collect_streamed

__all__ = [
    "STATISTICS_VERSION", "LayerStatistics", "Moments", "Statistics", "Text", "calibration_windows",
    "collect", "collect_covariances", "collect_layerwise", "collect_streamed", "enter_windows", "evaluation_windows",
    "finite", "merge", "moments", "read_text", "split_windows", "statistics", "statistics_on_disk", "tokens_sha256",
]  # fmt: skip
