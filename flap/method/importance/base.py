"""The base class of the metrics, and scoring layer by layer.

A metric sees nothing but a weight and the statistics of its inputs.
Legend: G attention units (KV heads) · U units · C channels of a unit · I, O input and output
channels · M members of a block.
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
    """The base class of the metrics: the score of each input channel of an output projection."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    # gradients of the loss, from which `Statistics.effect_U` is computed
    needs_gradients: ClassVar[bool] = False
    # scores are squared output errors, which add up over channels
    measures_error: ClassVar[bool] = False
    # whole experts are scored instead of the channels of their output projections
    scores_experts: ClassVar[bool] = False

    # If true, scores of attention channels are squared. The official code does so, the paper does
    # not.
    square_attention: bool = False

    @abstractmethod
    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return score_I in float32, higher = keep.

        `statistics` is None only if `needs_statistics` is False.
        """

    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return score_UC, the scores of the channels of each unit.

        A metric that scores whole units overrides this. `weight_OI` has the model's type, so that a
        metric that computes in another type makes only one copy.
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
        """Return functions, each of which returns score_UC of one member of a block on the CPU.

        statistics: the statistics of each member; empty without calibration.
        routed: `LayerStatistics.routed` of an MLP whose units are whole experts; else empty.
        """
        if not block.num_units:  # the layer lacks this block
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
    """Make a metric of a plain function `score(weight_OI, statistics) -> score_I`, higher = keep.

    The class of the metric has the name and the module of the function, because reports and error
    messages name a metric by its class. The statistics that the function gets have no covariance.
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

    statistics: yields the statistics of each layer while the layer is present.
    work: the folder of the walk that `statistics` are from. A walk that resumes an interrupted one
        finds the scores of finished layers there.
    """
    notes = Notes(SCORES, work)
    for i, observed in statistics:
        notes.write(i, scores_of_layer(metric, adapter.blocks(i), observed))
        del observed  # free its covariances before the next layer's are collected
    return Scores.joined(map(notes.read, range(len(adapter.layers))))


def scores_of_layer(
    metric: Metric, blocks: Pair[Block], observed: LayerStatistics | None
) -> Scores:
    """Return the scores of one layer as a part of the scores of all layers."""
    layers = (score_layer(metric, blocks, observed),)
    if observed is None or not metric.measures_error or metric.square_attention:
        return Scores(layers)
    return Scores(layers, (observed.inverse_power,), (observed.routed_power,))


def score_layer(
    metric: Metric, blocks: Pair[Block], observed: LayerStatistics | None
) -> Pair[Tensor]:
    """Return score_GC and score_I of one layer.

    Raises:
        ValueError: weights or scores are not finite; names the block.
    """
    inputs = Pair[Sequence[Statistics]]((), ())
    routed: Sequence[Statistics] = ()
    if observed is not None:
        inputs = Pair(*observed.blocks)
        routed = observed.routed
    heads = metric.scorers(blocks.attention, inputs.attention, routed=())
    mlps = metric.scorers(blocks.mlp, inputs.mlp, routed)

    scorers = [*heads, *mlps]
    if metric.needs_covariance:  # a factorisation takes long, so processes share the work
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

    The weights are checked even if the metric does not read them, because the compensation does.
    """
    finite = bool(torch.isfinite(score_UC).all())
    for member in block.members:  # one at a time, as the weights of all experts take gigabytes
        finite = finite and bool(torch.isfinite(member.output.weight).all())
    if not finite:
        raise ValueError(
            f"metric: weights or scores of {block.name} are not finite; check the model's weights"
        )
