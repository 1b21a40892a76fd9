"""The base class of the metrics of experts, which score whole experts by what they do to the tokens sent to them.

Legend: E experts of a layer · R tokens that are sent to one of them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flap.calibration import Statistics
from flap.importance.wifv import WIFV
from flap.models import OfToken


class Routed(NamedTuple):
    """What is known of the experts of a layer over the tokens that are sent to each; zeros where there are none."""

    tokens_E: Tensor  # how many, R
    mean: OfToken  # the means of the tokens' numbers, (E) each
    variance_E: Tensor  # the sample variance of the output, divisor R - 1, summed over its channels

    @classmethod
    def of(cls, experts: Sequence[Statistics]) -> "Routed":
        """Return it from `LayerStatistics.routed`."""
        numbers = len(OfToken._fields)
        means_EN = torch.stack([one.mean_I[-numbers:].cpu() for one in experts])
        variances = [one.var_I[:-numbers].cpu().double().sum() for one in experts]
        tokens_E = torch.tensor([one.num_tokens for one in experts], dtype=torch.float64)
        return cls(tokens_E, OfToken(*means_EN.unbind(dim=1)), torch.stack(variances))


@dataclass(frozen=True)
class ExpertMetric(WIFV):
    """The base class of the metrics of experts. Heads, and neurons of layers without experts, are scored by WIFV.

    Scores are of the dense model, whose router chooses from all experts. An expert that no token is sent to scores 0.
    """

    scores_experts: ClassVar[bool] = True
    measures_error: ClassVar[bool] = False

    @abstractmethod
    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E in any precision; higher = keep."""

    def score_all(self, experts: Sequence[Statistics]) -> Tensor:
        """Return score_E1 in float32, for a block whose units are experts."""
        return self.score_experts(Routed.of(experts)).float()[:, None].cpu()
