"""How far a pruned model's predictions stray from the dense ones: what structure=search decides by.

Legend: L layers · N windows · T tokens a window · D hidden size · V vocabulary.
"""

import copy
import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from flap.allocation import Trial
from flap.calibration import LayerStatistics
from flap.compression.compensation import Compensation
from flap.compression.prune import prune_layer
from flap.models import ModelAdapter
from flap.models.layerwise import Call, enter, leave


class Divergence:
    """KL(dense ‖ pruned) of the next-token distributions, in nats a token, with one layer pruned at a time.

    The hidden states in front of every layer and the dense log-probabilities stay in memory: N · T · (L · D + V)
    numbers. Only a pruned layer and those behind it run again.
    """

    def __init__(self, adapter: ModelAdapter, tokens_NT: Tensor) -> None:
        self.adapter, self.tokens_NT = adapter, tokens_NT.to(adapter.decoder.device)
        hidden_NTD, self._calls = enter(adapter, self.tokens_NT)
        self._hidden = [hidden_NTD, *self._run(0, hidden_NTD)]
        self._dense_NTV = self._log_probabilities(self._hidden[-1])

    def of_each(
        self, layer: int, trials: list[Trial], compensation: Compensation, known: LayerStatistics | None
    ) -> list[float]:
        """What each of these trials does."""
        return [self.of(layer, trial, compensation, known) for trial in trials]

    def of(self, layer: int, trial: Trial, compensation: Compensation, known: LayerStatistics | None) -> float:
        """What this trial does; the model is as it was afterwards.

        Raises: ValueError: the predictions are not finite.
        """
        layers = self.adapter.layers
        whole = layers[layer]
        layers[layer] = copy.deepcopy(whole)
        try:
            prune_layer(self.adapter, layer, trial.plan, compensation, known)
            *_, last_NTD = self._run(layer, self._hidden[layer])
        finally:
            layers[layer] = whole
        pruned_NTV = self._log_probabilities(last_NTD)
        total = kl_div(pruned_NTV, self._dense_NTV, reduction="sum", log_target=True).item()
        if not math.isfinite(total):
            raise ValueError(
                f"structure=search: the predictions without {trial.removed} units of layer {layer} {trial.block} are "
                "not finite; try model.dtype=float32 or bfloat16, or check the weights"
            )
        return max(0.0, total / self.tokens_NT.numel())  # rounding may take it below

    def _run(self, first: int, hidden_NTD: Tensor) -> Iterator[Tensor]:
        """What each layer from `first` on puts out."""
        calls: list[Call] = self._calls[first:]
        for layer, call in zip(list(self.adapter.layers)[first:], calls, strict=True):
            hidden_NTD = call(layer, hidden_NTD)
            yield hidden_NTD

    def _log_probabilities(self, hidden_NTD: Tensor) -> Tensor:
        hidden_NTD = hidden_NTD.to(self.tokens_NT.device)
        logits_NTV: Tensor = leave(self.adapter, self.adapter.model, self.tokens_NT, hidden_NTD).logits
        return log_softmax(logits_NTV.float(), dim=-1)
