"""The base class of the metrics, and scoring layer by layer. A metric sees only a weight and its inputs' statistics.

Legend: G attention units (KV heads) · U units · C channels of a unit · I, O input and output channels.
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
from flap.storage import NOT_KEPT, Notes, WorkFolder, ranks


@dataclass(frozen=True)
class Metric(ABC):
    """The base class of the metrics: the score of each input channel of an output projection."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    measures_error: ClassVar[bool] = (
        False  # scores are squared output errors, which add up over channels
    )
    scores_experts: ClassVar[bool] = (
        False  # whole experts, and not the channels of their output projections
    )
    square_attention: bool = (
        False  # square the scores of attention channels, as the official code does, not the paper
    )

    @abstractmethod
    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return score_I in float32, higher = keep. `statistics` is None only if `needs_statistics` is False."""

    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return score_UC, the scores of each unit's channels. A metric that scores whole units overrides this.

        weight_OI: in the model's type, so that a metric which computes in another one makes one copy.
        """
        name = f"{type(self).__module__}.{type(self).__name__}"
        expected = (weight_OI.shape[1],)

        score_I = self.score(weight_OI.float(), statistics)
        if not isinstance(score_I, Tensor):
            kind = type(score_I).__name__
            raise ValueError(
                f"metric: {name} returns {kind}: expected a tensor of shape {expected}"
            )
        shape = tuple(score_I.shape)
        if shape != expected:
            raise ValueError(
                f"metric: {name} returns scores of shape {shape}: expected {expected}, one a channel"
            )
        return score_I.float()[columns_UC]

    def scorers(
        self, block: Block, statistics: Sequence[Statistics], routed: Sequence[Statistics]
    ) -> list[Callable[[], Tensor]]:
        """Return functions, each of which returns score_UC of a member of a block on the CPU.

        statistics: of each member; empty without calibration. routed: `LayerStatistics.routed` of
        an MLP whose units are whole experts; else empty.
        """
        if not block.num_units:  # the layer lacks this block
            return [partial(torch.zeros, block.columns_UC.shape)]
        inputs: Sequence[Statistics | None] = statistics or [None] * len(block.members)
        return [partial(_score, self, *pair) for pair in zip(block.members, inputs, strict=True)]


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
    """Return the scores of all layers. Each layer must be present while `statistics` yields its statistics.

    work: of the walk that `statistics` are from, which leaves its scores here to one that resumes it.
    """
    notes = Notes(SCORES, work)
    for i, observed in statistics:
        notes.write(i, scores_of_layer(metric, adapter.blocks(i), observed))
        del observed  # with its covariances, before the next layer's are collected
    return Scores.joined(map(notes.read, range(len(adapter.layers))))


def scores_of_layer(
    metric: Metric, blocks: Pair[Block], observed: LayerStatistics | None
) -> Scores:
    """Return the scores of one layer, as a part of those of all layers."""
    errors = metric.measures_error and not metric.square_attention
    powers = ((observed.inverse_power,), (observed.routed_power,)) if observed and errors else ()
    return Scores((score_layer(metric, blocks, observed),), *powers)


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
    return Pair(_finite(score_GC, blocks.attention), _finite(score_IC, blocks.mlp).sum(dim=1))


def _score(metric: Metric, member: Block, statistics: Statistics | None) -> Tensor:
    weight_OI = member.output.weight.detach()
    return metric.score_units(
        weight_OI, statistics and statistics.to(weight_OI.device), member.columns_UC
    ).cpu()


def _finite(score_UC: Tensor, block: Block) -> Tensor:
    """Return the scores after a check that they and the block's weights are finite."""
    # the weights are checked as well: a metric may not read them, but the compensation does
    weights = (
        member.output.weight for member in block.members
    )  # one at a time: that of all experts takes gigabytes
    if not (
        torch.isfinite(score_UC).all()
        and all(torch.isfinite(weight_OI).all() for weight_OI in weights)
    ):
        raise ValueError(
            f"metric: weights or scores of {block.name} are not finite; check the model's weights"
        )
    return score_UC
