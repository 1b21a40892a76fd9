"""Scores of all layers from one metric; a metric itself knows only a weight and its input's statistics.

Legend: G attention units (KV heads) · U units · C channels of a unit · I, O channels that go in and come out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import LayerStatistics, Statistics
from flap.models import Block, ModelAdapter, at_hand


@dataclass(frozen=True)
class Scores:
    """Channel scores of every layer, higher = keep. A unit's channels stay together: kv_heads[layer] is score_GC.

    float32 on the CPU, finite. inverse_power: E[1 / ‖h‖²] of the residual stream that each layer reads, for structures
    that weigh errors by it; empty where nothing was calibrated.
    """

    kv_heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    inverse_power: tuple[float, ...] = ()


@dataclass(frozen=True)
class Metric(ABC):
    """How much each input channel of an output projection matters.

    square_attention: square the scores of attention channels, as the official code does (the paper does not).
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    measures_error: ClassVar[bool] = False  # scores are squared output errors, to be added up over channels
    square_attention: bool = False

    @abstractmethod
    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """score_I in float32, higher = keep. `statistics` is None only where `needs_statistics` is False."""

    def score_units(self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor) -> Tensor:
        """score_UC: the channels of each unit; a metric that weighs a unit as a whole says how."""
        return self.score(weight_OI, statistics)[columns_UC]


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of layers that were scored one by one."""
    return Scores(
        tuple(score_GC for part in parts for score_GC in part.kv_heads),
        tuple(score_I for part in parts for score_I in part.neurons),
        tuple(one for part in parts for one in part.inverse_power),
    )


def score_layers(
    metric: Metric, adapter: ModelAdapter, layers: range, statistics: Iterable[LayerStatistics | None]
) -> Scores:
    """Score the attention and MLP channels of these layers; `statistics` has one entry for each of them."""
    known = iter(statistics)  # a zip would hold a layer's covariances while the next one's are read
    return joined([_score_layer(metric, adapter, i, next(known)) for i in layers])


def _score_layer(metric: Metric, adapter: ModelAdapter, layer: int, known: LayerStatistics | None) -> Scores:
    attention, mlp = adapter.blocks(layer)
    with at_hand(adapter.layers[layer]):
        score_GC = _score_block(metric, attention, known.attention if known else None, metric.square_attention)
        score_I = _score_block(metric, mlp, known.mlp if known else None, square=False).sum(dim=1)
    return Scores((score_GC,), (score_I,), (known.inverse_power,) if known else ())


def _score_block(metric: Metric, block: Block, statistics: Statistics | None, square: bool) -> Tensor:
    weight_OI = block.output.weight.detach().float()
    known = statistics and statistics.to(weight_OI.device)
    score_UC = metric.score_units(weight_OI, known, block.columns_UC).cpu()
    score_UC = score_UC.square() if square else score_UC
    # scores that read no weight are followed by compensations that do
    if not (torch.isfinite(score_UC).all() and torch.isfinite(weight_OI).all()):
        raise ValueError(f"metric: weights or scores of {block.name} are not finite; check the model's weights")
    return score_UC
