"""Measure how much the predictions of pruned models differ from the dense model's predictions.

The measure is the divergence KL(dense ‖ pruned) between the two models' distributions of the next
token. With structure=search, units (heads, neurons or experts) are chosen so that this divergence
stays low. A plan lists the units that stay in each layer. A compensation changes output projections
to make up for the removed units. A stream contains the hidden states, at the input of one layer, of
all windows on which plans are measured. When a layer runs on a stream, the outputs of the layer
replace these hidden states (`Stream.advance`).

Legend of tensor suffixes: N: windows · T: tokens in a window · D: hidden size · V: vocabulary ·
X: texts · K: plans.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from flap.data import Batch, split_windows
from flap.data.batch import judged
from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.compression.apply import slice_out, write_layer
from flap.method.compression.compensation import Compensation
from flap.method.compression.fitting import BlockFit, fit_layer
from flap.models import Pair, PlacedModel, Stream, Walk
from flap.models.forward import output_after_layers
from flap.runtime import ranks
from flap.storage import NOT_KEPT, WorkFolder

EVERY = 4  # predictions are compared at every fourth position of a window
# Predictions are compared for a few windows at a time, which together have at most this number of
# tokens. If one window has more tokens, its predictions are compared for at most this number of
# positions at a time.
COMPARED_TOKENS = 1024
# name of the dense model's stream, which all plans share before the first layer
SHARED = "0"

# A function that gets the index i of a layer and the statistics of the layer, and returns, for each
# plan, the units that stay in layer i. The function is called while layer i is in memory. If an
# interrupted run has already finished layer i, the function gets None instead of statistics, and
# must return the same units as in that run. It also gets None if no statistics were collected.
PlansOfLayer = Callable[[int, LayerStatistics | None], Sequence[LayerPlan]]


@dataclass(frozen=True)
class PlanDivergence:
    """Measures KL(dense ‖ pruned) of next-token predictions for several plans, in nats per token.

    All plans are measured in one pass over the layers. Plans that keep the same units in the first
    layers share a stream up to the first layer in which they differ. At that layer, the stream
    forks. Each layer is read once. For each distinct set of units that plans keep in the layer, a
    copy of the layer is pruned. If there are several processes, the plans are divided among them.
    Each process has the stream of the dense model and the streams of its plans.

    Every fifth calibration window is held out: in this measurement, the least-squares fits of
    compensation=linear do not use these windows. Plans are measured on the last few held-out
    windows. Only the predictions at every fourth position are compared, because the predictions
    between these positions would add little information. With a large vocabulary, computing all
    predictions would take as long as computing many layers. In texts with answers, the predictions
    of all tokens in answers are compared instead.

    If the calibration text is a mixture of texts, the divergence is measured on each text, and the
    divergence of a plan is the largest of these divergences. If a unit is important on only one
    text of the mixture, it is probably important on some texts outside the mixture, too. A mean
    over the texts would hide the importance of this unit.
    """

    calibration: Calibration
    compensation: Compensation

    def __call__(
        self, plans: PlansOfLayer, num_tokens: int, covariance: bool, work: WorkFolder = NOT_KEPT
    ) -> list[float]:
        """Return the divergence of each plan.

        num_tokens: number of tokens to measure on, rounded up to whole windows. Plans are measured
            on at least one window of each text that has held-out windows.
        covariance: whether covariances are needed to choose the plans or to fit the compensation.
        work: the working directory, from which an interrupted pass over the layers resumes. The
            directory is deleted at the end.

        Raises:
            ValueError: predictions of a pruned model are not finite.
        """
        walk = Walk(self.calibration.model, "score, layer by layer", work)
        nats = self._divergences(walk, plans, num_tokens, covariance)
        # the directory is not deleted earlier, because until here its files are mapped into memory
        work.clear()
        return nats

    def _divergences(
        self, walk: Walk, plans: PlansOfLayer, num_tokens: int, covariance: bool
    ) -> list[float]:
        windows, text_N = self._windows(num_tokens)
        dense = dense_plan(self.calibration.model)

        def with_dense(i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
            return [dense.layers[i], *ranks.own_share(plans(i, observed))]

        # the name of each plan's stream after the last layer that an interrupted run has finished
        names: list[str] = []
        for i in range(walk.layers_done):
            names = _next_streams(with_dense(i, None), names)
        streams = {SHARED: walk.enter(SHARED, [windows])}
        for name in set(names) - {SHARED}:
            streams[name] = walk.restored(name, streams[SHARED])

        for i, observed in self.calibration.along(walk, covariance):
            layer_plans = with_dense(i, observed)
            forks, names = self._advance(i, layer_plans, observed, streams, names)
            del observed  # free this layer's covariances before the next layer is observed
            walk.replace(streams, forks)
            streams = forks

        outputs = [streams[name].batches[0] for name in names]
        return ranks.gather_in_order(self._nats(windows, text_N, outputs))

    def _windows(self, num_tokens: int) -> tuple[Batch, Tensor]:
        """Return the windows on which plans are measured, and the text of each window (text_N).

        text_N contains the index of the text from which each window was cut. The mask of the
        windows is true for tokens of answers. In texts with few or no tokens of answers, it is true
        for all tokens.
        """
        tokens_NT = self.calibration.windows.tokens_NT
        windows = Batch.of(tokens_NT)
        if self.calibration.judged_NT is not None:
            windows = Batch(tokens_NT, self.calibration.judged_NT)
        text_N = self.calibration.text_N
        if text_N is None:
            text_N = torch.zeros(len(windows), dtype=torch.long)

        _, held_out = split_windows(windows)
        _, held_out_N = split_windows(text_N)
        last = _last(held_out_N, math.ceil(num_tokens / tokens_NT.shape[1]))
        return judged(held_out[last], held_out_N[last]), held_out_N[last]

    def _advance(
        self,
        i: int,
        plans: Sequence[LayerPlan],
        observed: LayerStatistics | None,
        streams: Mapping[str, Stream],
        names: list[str],
    ) -> tuple[dict[str, Stream], list[str]]:
        """For each plan, run a copy of layer i, pruned as the plan says, on the plan's stream.

        Return the streams after the layer, and the name of each plan's stream after the layer.

        streams: the streams before the layer, by name.
        names: the name of each plan's stream before the layer; empty before the first layer.
        """
        before = names or [SHARED] * len(plans)
        after = _next_streams(plans, names)
        forks = defaultdict[LayerPlan, set[tuple[str, str]]](set)
        for plan, old, new in zip(plans, before, after, strict=True):
            forks[plan].add((old, new))

        model = self.calibration.model
        blocks = model.adapter.blocks(i)
        fits = fit_layer(blocks, list(forks), self.compensation, observed, trial=True)
        advanced: dict[str, Stream] = {}
        for (layer_plan, pairs), layer_fits in zip(forks.items(), fits, strict=True):
            with pruned_layer(model, i, layer_plan, layer_fits) as layer:
                for old, new in sorted(pairs):
                    advanced[new] = streams[old].fork()
                    advanced[new].advance(i, layer)
        return advanced, after

    @torch.no_grad()
    def _nats(self, measured: Batch, text_N: Tensor, hidden: Sequence[Tensor]) -> list[float]:
        """Return, for each plan, the largest of its divergences on the texts, in nats per token.

        measured: the windows on which plans are measured.
        hidden: the outputs of the last layer for these windows: first the outputs of the dense
            model, and then the outputs of each plan.
        """
        model = self.calibration.model
        num_texts = int(text_N.max()) + 1
        total_KX = torch.zeros(len(hidden) - 1, num_texts).double()
        tokens_X = torch.zeros(num_texts)
        with model.ends():
            for part_N, part_NT, dense_NTD, *others in _compared(measured, text_N, *hidden):
                dense_NTV = log_softmax(_logits(model, part_NT, dense_NTD), dim=-1)
                p_NTV = dense_NTV.exp()
                for k, hidden_NTD in enumerate(others):
                    logits_NTV = _logits(model, part_NT, hidden_NTD)
                    windows = zip(p_NTV, dense_NTV, logits_NTV, strict=True)
                    nats_N = torch.tensor([kl(*window) for window in windows], dtype=torch.float64)
                    total_KX[k].index_add_(0, part_N, nats_N)
                compared = torch.full(part_N.shape, float(part_NT.shape[1]))
                tokens_X.index_add_(0, part_N, compared)
        if not total_KX.isfinite().all():
            raise ValueError(
                "structure=search: predictions of a pruned model are not finite; "
                "try model.dtype=float32 or bfloat16, or check the weights"
            )
        # A text without measured windows gets the divergence 0. A negative divergence becomes 0,
        # because only rounding can make it negative.
        nats_K = (total_KX / tokens_X.clamp(min=1)).amax(dim=1).clamp(min=0)
        return list(map(float, nats_K))


def kl(p_TV: Tensor, log_p_TV: Tensor, logits_TV: Tensor) -> float:
    """Return the divergence KL(p ‖ q) in nats, summed over all positions of a window.

    p: the distribution that the dense model predicts. q: the distribution that the pruned model
        predicts, given by the logits of the pruned model.

    The terms p · (log p - log q) are summed, because subtracting Σ p log q from Σ p log p would
    lose precision. With a vocabulary of 50,000 tokens, such a subtraction gave a divergence that
    was wrong by 0.001 nats per token.
    """
    nats_TV = log_softmax(logits_TV, dim=-1)
    # compute in place, because allocating a new tensor takes as long as computing its values
    return torch.sub(log_p_TV, nats_TV, out=nats_TV).mul_(p_TV).sum().item()


def _last(text_N: Tensor, num_windows: int) -> Tensor:
    """Return the indices of the last `num_windows` windows, and of the last window of each text."""
    last_of_texts = {int(text): n for n, text in enumerate(text_N)}
    last = range(max(0, len(text_N) - num_windows), len(text_N))
    return torch.tensor(sorted({*last_of_texts.values(), *last}))


def _compared(measured: Batch, text_N: Tensor, *streams: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield text_N, tokens_NT and the hidden states of each stream, for a few windows at a time.

    text_N contains the index of the text of each window. tokens_NT and the hidden states contain
    only the positions at which predictions are compared. In texts with answers, these are all
    positions whose next token is in an answer. In other texts, every fourth position is compared.

    streams: for each stream, the hidden states hidden_NTD of all windows.
    """
    tokens_NT = measured.tokens_NT
    every_T = torch.arange(tokens_NT.shape[1])
    fourth_T = every_T[min(EVERY, len(every_T)) - 1 :: EVERY]
    with_answers = set(text_N[~measured.mask_NT.all(dim=1)].tolist())
    windows = 1 if with_answers else max(1, COMPARED_TOKENS // len(every_T))
    for n in range(0, len(tokens_NT), windows):
        part = slice(n, n + windows)
        chosen_T = fourth_T
        if int(text_N[n]) in with_answers:
            # if any text has answers, `part` has a single window, so that P = T
            predicted_T = measured[part].predicted_P
            chosen_T = every_T if predicted_T is None else every_T[predicted_T]
        for position in chosen_T.split(COMPARED_TOKENS):
            if len(position):
                hidden = [stream[part, position] for stream in streams]
                yield text_N[part], tokens_NT[part, position], *hidden


def dense_plan(model: PlacedModel) -> PruningPlan:
    """Return the plan that keeps all units of a model."""
    layers = []
    for i in range(len(model.layers)):
        attention, mlp = model.adapter.blocks(i)
        layers.append(LayerPlan(tuple(range(attention.num_units)), tuple(range(mlp.num_units))))
    return PruningPlan(tuple(layers))


@contextmanager
def pruned_layer(
    model: PlacedModel, i: int, plan: LayerPlan, fits: Pair[BlockFit | None]
) -> Iterator[nn.Module]:
    """Yield a pruned copy of layer i. The layer must be in memory.

    If the plan keeps all units of the layer, yield the layer itself.

    fits: the fitted output projections of the attention and of the MLP; None for a block that keeps
        all of its units.
    """
    layers = model.layers
    dense = layers[i]
    if fits == (None, None):
        yield dense
        return
    # put the copy into the model, because `model.adapter` can only access layers of the model
    layers[i] = model.copy_layer(i)
    try:
        write_layer(slice_out, model.adapter, i, plan, fits)
        copied = layers[i]
    finally:
        layers[i] = dense
    yield copied


def _next_streams(plans: Sequence[LayerPlan], before: Sequence[str]) -> list[str]:
    """Return the name of each plan's stream after a layer.

    If plans share a stream before the layer, and keep the same units of the layer, they share a
    stream after the layer.

    plans: the units that each plan keeps in the layer.
    before: the name of each plan's stream before the layer; empty before the first layer, where all
        plans share a stream.
    """
    names: dict[tuple[str, LayerPlan], str] = {}
    pairs = zip(before or [SHARED] * len(plans), plans, strict=True)
    return [names.setdefault(pair, str(len(names))) for pair in pairs]


def _logits(model: PlacedModel, tokens_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
    """Compute logits (logits_NTV, in float32) from the outputs of the last layer."""
    tokens_NT = tokens_NT.to(model.device)
    hidden_NTD = hidden_NTD.to(model.device)
    logits_NTV: Tensor = output_after_layers(
        model.adapter, model.model, tokens_NT, hidden_NTD
    ).logits
    return logits_NTV.float()
