"""The base class of the metrics, and functions that score layers with a metric.

Most metrics score the input channels of an output projection, which is the last matrix of an
attention or an MLP. They compute the scores from the weight of the projection and the statistics of
these channels. Metrics of whole experts compute the scores from the statistics of the experts'
outputs (experts.py). A unit consists of the channels that are removed together. A block is the
attention or the MLP of a layer. In a mixture of experts, the members of the MLP are its experts.

Legend: G: attention units (KV heads) · U: units · C: channels of a unit · I: input channels · O:
output channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flap.method.calibration import LayerStatistics, Statistics, Visits
from flap.method.importance.scores import SCORES, Scores
from flap.models import Block, ModelAdapter, Pair
from flap.runtime import ranks
from flap.storage import NOT_KEPT, Notes, WorkFolder


@dataclass(frozen=True)
class Metric(ABC):
    """Base class of the metrics, which score channels of output projections or whole experts."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    # whether the metric needs `Statistics.effect_U`, which is computed from gradients of the loss
    needs_gradients: ClassVar[bool] = False
    # whether scores are squared errors in the output of the projection, so that the score of a unit
    # is the sum of the scores of its channels
    measures_error: ClassVar[bool] = False
    # whether whole experts are scored instead of the channels of their output projections
    scores_experts: ClassVar[bool] = False

    # If true, scores of attention channels are squared, as in the official code of FLAP. In the
    # paper on FLAP, they are not squared.
    square_attention: bool = False

    @abstractmethod
    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return the score of each input channel (score_I), in float32.

        The channels with the lowest scores are removed first. `statistics` is None only if
        `needs_statistics` is False.
        """

    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return the scores of the channels of each unit (score_UC).

        Metrics that score whole units instead of channels override this method. `weight_OI` has the
        dtype of the model. A metric that overrides this method can convert the weight directly to
        the dtype in which the metric computes.

        columns_UC: the indices of the columns of the weight that belong to each unit.
        """
        name = f"{type(self).__module__}.{type(self).__name__}"
        expected = (weight_OI.shape[1],)

        score_I = self.score(weight_OI.float(), statistics)
        if not isinstance(score_I, Tensor):
            raise ValueError(
                f"metric: {name} returns {type(score_I).__name__}: "
                f"expected a tensor of shape {expected}"
            )
        shape = tuple(score_I.shape)
        if shape != expected:
            raise ValueError(
                f"metric: {name} returns scores of shape {shape}: "
                f"expected {expected}, one score a channel"
            )
        return score_I.float()[columns_UC]

    def scorers(
        self, block: Block, statistics: Sequence[Statistics], routed: Sequence[Statistics]
    ) -> list[Callable[[], Tensor]]:
        """Return, for each member of a block, a function that computes the member's scores.

        The functions return the scores of the channels of each unit (score_UC), on the CPU.

        statistics: the statistics of each member; empty if there was no calibration.
        routed: if the units of the block are whole experts, the statistics of each expert over the
            tokens that are routed to it (`LayerStatistics.routed`); otherwise empty.
        """
        if not block.num_units:  # for example, the layer has no MLP
            return [partial(torch.zeros, block.columns_UC.shape)]
        inputs: Sequence[Statistics | None] = statistics or [None] * len(block.members)
        return [
            partial(_score_member, self, member, observed)
            for member, observed in zip(block.members, inputs, strict=True)
        ]


def _score_member(metric: Metric, member: Block, statistics: Statistics | None) -> Tensor:
    weight_OI = member.output.weight.detach()
    if statistics is not None:
        statistics = statistics.to(weight_OI.device)
    return metric.score_units(weight_OI, statistics, member.columns_UC).cpu()


MetricFunction = Callable[[Tensor, Statistics], Tensor]  # score(weight_OI, statistics) -> score_I


def metric_of(function: MetricFunction) -> Metric:
    """Make a metric from a function `score(weight_OI, statistics) -> score_I`.

    Channels with the lowest scores are removed first. The statistics that the function gets have no
    covariances. Reports and error messages show the class of a metric, so the class of the returned
    metric gets the name and the module of the function.
    """

    @dataclass(frozen=True)
    class FunctionMetric(Metric):
        def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
            assert statistics is not None
            return function(weight_OI, statistics)

    named = function if hasattr(function, "__qualname__") else type(function)
    for attribute in ("__module__", "__name__", "__qualname__"):
        setattr(FunctionMetric, attribute, getattr(named, attribute))
    return FunctionMetric()


def score_layers(
    metric: Metric, adapter: ModelAdapter, statistics: Visits, work: WorkFolder = NOT_KEPT
) -> Scores:
    """Return the scores of all layers.

    statistics: yields the statistics of each layer while the layer is in memory.
    work: the working directory of the pass over the layers that yields `statistics`. An interrupted
        pass resumes from this directory, which also stores the scores of finished layers.
    """
    notes = Notes(SCORES, work)
    for i, observed in statistics:
        notes.write(i, scores_of_layer(metric, adapter.blocks(i), observed))
        del observed  # free this layer's covariances before the next layer is observed
    return Scores.joined(map(notes.read, range(len(adapter.layers))))


def scores_of_layer(
    metric: Metric, blocks: Pair[Block], observed: LayerStatistics | None
) -> Scores:
    """Score one layer, and return a `Scores` with only this layer."""
    layers = (score_layer(metric, blocks, observed),)
    if observed is None or not metric.measures_error or metric.square_attention:
        return Scores(layers)
    return Scores(layers, (observed.inverse_power,), (observed.routed_power,))


def score_layer(
    metric: Metric, blocks: Pair[Block], observed: LayerStatistics | None
) -> Pair[Tensor]:
    """Return the scores of the attention (score_GC) and of the MLP (score_I) of one layer.

    score_GC has one score per channel of each attention unit, and score_I has one score per neuron.
    If the units of the MLP are whole experts, score_I has one score per expert.

    Raises:
        ValueError: weights or scores are not finite. The message names the block.
    """
    inputs = Pair[Sequence[Statistics]]((), ())
    routed: Sequence[Statistics] = ()
    if observed is not None:
        inputs = Pair(*observed.blocks)
        routed = observed.routed
    heads = metric.scorers(blocks.attention, inputs.attention, routed=())
    mlps = metric.scorers(blocks.mlp, inputs.mlp, routed)

    scorers = [*heads, *mlps]
    # the factorisation of covariances takes long, so the processes share this work
    if metric.needs_covariance:
        scores = ranks.each_by_one(scorers)
    else:
        scores = ranks.on_first(lambda: [scorer() for scorer in scorers])

    score_GC = torch.cat(scores[: len(heads)])
    score_IC = torch.cat(scores[len(heads) :])
    if metric.square_attention:
        score_GC = score_GC.square()
    _check_finite(score_GC, blocks.attention)
    _check_finite(score_IC, blocks.mlp)
    return Pair(score_GC, score_IC.sum(dim=1))


def _check_finite(score_UC: Tensor, block: Block) -> None:
    """Check that the scores and the weights of a block are finite.

    The weights are checked even if the metric does not use them, because they are used later to
    make up for the removed units.
    """
    finite = bool(torch.isfinite(score_UC).all())
    # check one member at a time, because the weights of all experts together take gigabytes
    for member in block.members:
        finite = finite and bool(torch.isfinite(member.output.weight).all())
    if not finite:
        raise ValueError(
            f"metric: weights or scores of {block.name} are not finite; check the model's weights"
        )
