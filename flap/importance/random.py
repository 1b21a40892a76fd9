"""Random scores: the floor that every metric must beat."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class Random(Metric):
    """score_j uniform in [0, 1). One seeded stream: the n-th projection scored gets the n-th draw."""

    needs_statistics: ClassVar[bool] = False
    seed: int = 0

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        return torch.rand(weight_OI.shape[1], generator=self.generator)
