"""The metric `taylor`: the first-order effect that removing a unit has on the loss.

A unit is removed as a whole: a KV head with its query heads, a neuron, or an expert.

Legend: U: units · C: channels of a unit · O: output channels of an output projection · I: input
channels of an output projection.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance.base import Metric


@dataclass(frozen=True)
class Taylor(Metric):
    """First-order importance of coupled groups (LLM-Pruner, arXiv 2305.11627, section 3.2).

        score_u = |Σ_w w · ∂L/∂w|

    w: each weight that is removed with unit u. These are the weights and biases in the unit's rows
    of the input projections, and the weights in its columns of the output projection. The paper
    calls these weights a coupled group. For a KV head, the group includes the weights of its query
    heads. L: the mean cross-entropy of the next token over the calibration windows, in nats per
    token. To first order, the score is the absolute change of the loss if the unit is removed. The
    score is divided evenly over the channels of the unit. Higher = keep.

    Equation 3 of the paper is the Taylor expansion of the loss for a group of weights. The score is
    the first-order term of this expansion, with the whole group as one vector. Gradients are summed
    over all windows, so opposite effects in different windows cancel. The paper also describes two
    other ways to score a group, which are not implemented here. The first way scores each matrix of
    the group, and takes the sum, product or maximum of these scores. The second way (equation 4)
    scores each weight, with the absolute value inside the sum. The second-order term of the
    expansion (equation 5) is not implemented, either.

        python -m flap metric=taylor calibration.num_samples=10

    For the gradients, the whole model must be on one device (`model.placement=device`).
    `method=llm_pruner` adds the structure and the calibration of the paper.
    """

    needs_gradients: ClassVar[bool] = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Score each channel as a separate unit, and return the scores (score_I)."""
        columns_U1 = torch.arange(weight_OI.shape[1])[:, None]
        return self.score_units(weight_OI, statistics, columns_U1).flatten()

    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return each unit's score, divided evenly over its channels (score_UC), in float32."""
        assert statistics is not None and statistics.effect_U is not None
        score_U = statistics.effect_U.abs() / columns_UC.shape[1]
        return score_U.float()[:, None].expand(columns_UC.shape)
