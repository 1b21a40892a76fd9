"""What pruning one loaded model takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from flap.allocation import Budget
from flap.cache import Cache
from flap.calibration import LayerStatistics, statistics_on_disk
from flap.compression import CompressLayer, mask_layer, prune_layer
from flap.config import FlapConfig
from flap.models import ModelAdapter
from flap.reporting import Report
from flap.stages import Calibration, Stages


@dataclass(frozen=True)
class Job:
    """What pruning one loaded model takes; `report` is filled on the way."""

    adapter: ModelAdapter
    budget: Budget
    stages: Stages
    calibration: Calibration | None
    config: FlapConfig
    report: Report
    cache: Cache
    model_key: Mapping[str, object] = field(default_factory=dict)

    def statistics(self, device: torch.device, collect: Callable[[], list[LayerStatistics]]) -> list[LayerStatistics]:
        """Statistics of the dense model: collected once for all that share model and calibration, then read."""
        assert self.calibration is not None
        statistics, self.report.statistics_cache = self.cache.get(
            statistics_on_disk(device), {**self.model_key, **self.calibration.key}, collect
        )
        return statistics

    @property
    def compress_layer(self) -> CompressLayer:
        return mask_layer if self.config.mask_only else prune_layer
