"""Measure the speed of a model on this machine by running its layers for a few seconds.

The layers get random weights, so no file with weights is read.

Legend: N: windows, T: tokens of a window (in tensors without N: tokens of the whole batch),
P: positions, D: hidden size, I: input channels of the output projection of an MLP, U: units (heads,
neurons or experts), C: channels of a unit, S: rows and J: columns of a strip (successive rows of a
covariance, see `Symmetric`).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import log_softmax

from flap.method.calibration.symmetric import Symmetric
from flap.models import ModelAdapter, ModelSource, adapt
from flap.models.forward import enter
from flap.models.predictions import positions_per_chunk
from flap.models.random_weights import fill_buffers, fill_randomly
from flap.runtime.agenda import Speed

# Maximum number of tokens in a timed batch, unless a single window has more tokens. This number is
# so small that timing takes only seconds even for a layer of 1 GB.
TOKENS = 512
# the speed of text generation is measured with a batch of this many sequences of one token
ROWS = 16
ENOUGH = 0.3  # a measurement is repeated until all repetitions together take this many seconds
MOST_CHANNELS = 4096  # the covariance that is timed has at most this many channels


class LayerSpeed(NamedTuple):
    """The speed of a model on a device."""

    layers: float  # seconds per token in all decoder layers
    head: float  # seconds per position in the LM head and the softmax of the logits
    written: float  # seconds per generated token, in all decoder layers and in the LM head
    product: float  # seconds per multiply-accumulate of a covariance, in float32

    @property
    def of_tasks(self) -> Speed:
        """The speed of evaluation tasks, which compute logits for every token that they read."""
        return Speed(self.layers + self.head, self.written)


def why_not_measured(device: torch.device) -> str:
    """Return the reason why layers cannot be timed on a device; "" if timing is possible."""
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return "" if is_there.get(device.type) else f"this machine has no {device.type}"


@torch.no_grad()
def layer_speed(source: ModelSource, batch_size: int, seq_len: int) -> LayerSpeed:
    """Return the speed of a model on its device.

    The LM head, the computation of a covariance, and one decoder layer of each shape are timed.

    batch_size, seq_len: the options `calibration.batch_size` and `calibration.seq_len`.
    """
    adapter = _without_weights(source)
    windows = max(1, min(batch_size, TOKENS // seq_len))
    tokens = windows * seq_len
    head = _seconds(partial(_log_probabilities, adapter, tokens), source.device) / tokens
    written = _seconds(partial(_log_probabilities, adapter, ROWS), source.device) / ROWS
    layers = 0.0
    for index, count in _shapes(adapter).items():
        fill_randomly(adapter.layers[index].modules(), source.device)
        layers += count * _layer_seconds(adapter, index, windows, seq_len) / tokens
        written += count * _layer_seconds(adapter, index, ROWS, 1) / ROWS
        adapter.layers[index].to("meta")
    return LayerSpeed(layers, head, written, _product_seconds(adapter, tokens))


def _without_weights(source: ModelSource) -> ModelAdapter:
    """Return the model with random weights, but with its decoder layers on the meta device."""
    model = source.skeleton().to(source.dtype)
    fill_buffers(model, source.device)
    adapter = adapt(model)
    fill_randomly(set(model.modules()) - set(adapter.layers.modules()), source.device)
    model.tie_weights()
    return adapter


def _shapes(adapter: ModelAdapter) -> dict[int, int]:
    """Return a dict with an item for each shape that layers of the model have.

    The key is the index of the first layer of this shape. The value is the number of layers of this
    shape.
    """
    first: dict[tuple[tuple[str, torch.Size], ...], int] = {}
    counts: dict[int, int] = {}
    for index, layer in enumerate(adapter.layers):
        shape = tuple((name, one.shape) for name, one in layer.named_parameters())
        alike = first.setdefault(shape, index)
        counts[alike] = counts.get(alike, 0) + 1
    return counts


def _layer_seconds(adapter: ModelAdapter, index: int, windows: int, seq_len: int) -> float:
    device = next(adapter.layers[index].parameters()).device
    tokens_NT = torch.ones(windows, seq_len, dtype=torch.long, device=device)
    hidden_NTD, calls = enter(adapter, tokens_NT)
    return _seconds(partial(calls[index], adapter.layers[index], hidden_NTD), device)


def _log_probabilities(adapter: ModelAdapter, positions: int) -> None:
    """Compute the log-probabilities at this number of positions, as evaluation tasks do."""
    weight = adapter.model.get_input_embeddings().weight
    hidden_PD = torch.ones(positions, weight.shape[1], dtype=weight.dtype, device=weight.device)
    for part in hidden_PD.split(positions_per_chunk(adapter.vocab_size)):
        log_softmax(adapter.logits(part).float(), dim=-1)


def _product_seconds(adapter: ModelAdapter, tokens: int) -> float:
    """Return the seconds that a multiply-accumulate takes when a covariance is computed."""
    device = adapter.model.get_input_embeddings().weight.device
    channels = min(adapter.mlp(0).columns_UC.numel(), MOST_CHANNELS)
    inputs_TI = torch.rand(tokens, channels, device=device)
    covariance = Symmetric.zeros(channels, device)
    seconds = _seconds(partial(covariance.add_products, inputs_TI), device)
    return seconds / (tokens * sum(strip_SJ.numel() for strip_SJ in covariance.strips))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the mean time of a call of `work` in seconds, without the first call."""
    _timed(work, device)
    times: list[float] = []
    while sum(times) < ENOUGH:
        times.append(_timed(work, device))
    return sum(times) / len(times)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - start
