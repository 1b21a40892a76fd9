"""Two baselines that read no activations, the norm of the weights and random scores; and no metric at all."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from flap.config import require
from flap.method.calibration import Statistics
from flap.method.importance.base import Metric


@dataclass(frozen=True)
class Magnitude(Metric):
    """The norm of a channel's weights: Mag-sp in FLAP's experiments (arXiv 2312.11983, section 4).

        score_j = ‖W_:j‖₂

    W (O, I): the output projection. No activations are used, so no calibration is needed; higher = keep.

        python -m flap metric=magnitude
    """

    needs_statistics: ClassVar[bool] = False

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        return weight_OI.square().sum(dim=0).sqrt()


@dataclass(frozen=True)
class Random(Metric):
    """Random scores: no paper's method, but the floor that every metric must beat.

        score_j ~ U[0, 1)

    j: an input channel of the output projection. All projections share one generator: the n-th that is scored gets its
    n-th draw. Higher = keep.

        python -m flap metric=random metric.seed=1
    """

    needs_statistics: ClassVar[bool] = False
    seed: int = 0  # of the generator; a whole number

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "metric.seed", self.seed, "a whole number from 0 to 2**32 - 1")

    @cached_property
    def generator(self) -> torch.Generator:
        """The seeded generator, which all projections share."""
        return torch.Generator().manual_seed(self.seed)

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return the next draw of the generator, in float32; higher = keep."""
        return torch.rand(weight_OI.shape[1], generator=self.generator)


@dataclass(frozen=True)
class NoMetric(Metric):
    """No scores, as a plan is given (`plan=RUN|FILE`)."""

    needs_statistics: ClassVar[bool] = False

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        raise AssertionError("a plan is given")
