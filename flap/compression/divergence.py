"""How far a pruned model's predictions stray from the dense ones: what structure=search decides by.

Legend: L layers · N windows · T tokens a window · D hidden size · V vocabulary.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from flap.allocation import LayerPlan, PruningPlan, Trial
from flap.calibration import LayerStatistics
from flap.compression.compensation import Compensation
from flap.compression.prune import prune_layer
from flap.models import ModelAdapter
from flap.models.layerwise import enter, leave


@dataclass(frozen=True)
class Stack:
    """Layers in a row, hidden_NTD in front of each, and the divergence of what they predict, in nats a token."""

    layers: Sequence[nn.Module]
    hidden: Sequence[Tensor]
    nats: float


class Divergence:
    """KL(dense ‖ pruned) of the next-token distributions, in nats a token; the model itself stays as it is.

    The hidden states in front of every layer and the dense probabilities stay in memory: N · T · (L · D + V)
    numbers. Only a layer that is tried and those behind it run again.
    """

    def __init__(self, adapter: ModelAdapter, tokens_NT: Tensor) -> None:
        self.adapter, self.tokens_NT = adapter, tokens_NT.to(adapter.decoder.device)
        self._first_NTD, self._calls = enter(adapter, self.tokens_NT)
        dense = list(adapter.layers)
        hidden = [self._first_NTD, *self._run(dense, 0, self._first_NTD)]
        log_probabilities_NTV = log_softmax(self._logits(hidden.pop()), dim=-1)
        self._dense_NTV = log_probabilities_NTV.exp()
        self._entropy = -_dot(self._dense_NTV, log_probabilities_NTV)
        self.dense = Stack(dense, hidden, 0.0)

    def stack(
        self, plan: PruningPlan, compensation: Compensation, statistics: Iterable[LayerStatistics | None]
    ) -> Stack:
        """The whole model pruned by this plan. Raises: ValueError: the predictions are not finite."""
        known = iter(statistics)  # a zip would hold a layer's covariances while the next one's are read
        layers = [self._pruned(i, layer, compensation, next(known)) for i, layer in enumerate(plan.layers)]
        hidden = [self._first_NTD, *self._run(layers, 0, self._first_NTD)]
        return Stack(layers, hidden, self._nats(hidden.pop(), "of the whole plan"))

    def of_each(
        self,
        layer: int,
        trials: Sequence[Trial],
        compensation: Compensation,
        known: LayerStatistics | None,
        within: Stack | None = None,
    ) -> list[float]:
        """The divergences when this layer is as each trial says, and the others are dense, or as `within` has them."""
        return [self.of(layer, trial, compensation, known, within) for trial in trials]

    def of(
        self,
        layer: int,
        trial: Trial,
        compensation: Compensation,
        known: LayerStatistics | None,
        within: Stack | None = None,
    ) -> float:
        """The divergence of one trial, as in `of_each`. Raises: ValueError: the predictions are not finite."""
        others = within or self.dense
        tried = [*others.layers[:layer], self._pruned(layer, trial.plan, compensation, known)]
        *_, last_NTD = self._run([*tried, *others.layers[layer + 1 :]], layer, others.hidden[layer])
        return self._nats(last_NTD, f"without {trial.removed} units of layer {layer} {trial.block}")

    def _pruned(
        self, layer: int, plan: LayerPlan, compensation: Compensation, known: LayerStatistics | None
    ) -> nn.Module:
        """A copy of the dense layer, pruned; the adapter speaks of it while it stands in the other's place."""
        layers = self.adapter.layers
        whole = layers[layer]
        layers[layer] = copy.deepcopy(whole)
        try:
            prune_layer(self.adapter, layer, plan, compensation, known)
            return layers[layer]
        finally:
            layers[layer] = whole

    def _run(self, layers: Sequence[nn.Module], first: int, hidden_NTD: Tensor) -> Iterator[Tensor]:
        """What each layer from `first` on puts out."""
        for layer, call in zip(layers[first:], self._calls[first:], strict=True):
            hidden_NTD = call(layer, hidden_NTD)
            yield hidden_NTD

    def _nats(self, last_NTD: Tensor, which: str) -> float:
        """Σ p (log p - log q) over all tokens, with log q = logits - logsumexp: half the passes over N · T · V."""
        logits_NTV = self._logits(last_NTD)
        cross_entropy = logits_NTV.logsumexp(dim=-1).double().sum().item() - _dot(self._dense_NTV, logits_NTV)
        total = cross_entropy - self._entropy
        if not math.isfinite(total):
            raise ValueError(
                f"structure=search: the predictions {which} are not finite; try model.dtype=float32 or bfloat16, or "
                "check the weights"
            )
        return max(0.0, total / self.tokens_NT.numel())  # rounding may take it below

    def _logits(self, hidden_NTD: Tensor) -> Tensor:
        hidden_NTD = hidden_NTD.to(self.tokens_NT.device)
        logits_NTV: Tensor = leave(self.adapter, self.adapter.model, self.tokens_NT, hidden_NTD).logits
        return logits_NTV.float()


def _dot(left_NTV: Tensor, right_NTV: Tensor) -> float:
    """Σ left · right, window by window, so that float32 sums stay short."""
    pairs = zip(left_NTV, right_NTV, strict=True)
    return math.fsum(torch.dot(left_TV.flatten(), right_TV.flatten()).item() for left_TV, right_TV in pairs)
