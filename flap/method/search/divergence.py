"""The divergence of pruned models from the dense model in their predictions, which structure=search minimises.

Legend: N windows · T tokens a window · D hidden size · V vocabulary · X texts.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from flap.data import split_windows
from flap.data.counted import counted_predictions, judged, unmarked
from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.compression.apply import slice_out, write_layer
from flap.method.compression.compensation import Compensation
from flap.method.compression.fitting import BlockFit, fit_layer
from flap.models import Pair, PlacedModel, Stream, Walk
from flap.models.forward import output_after_layers
from flap.storage import NOT_KEPT, WorkFolder, ranks

EVERY = 4  # predictions are compared at every fourth position
COMPARED_TOKENS = 1024  # tokens, in whole windows, whose logits are in memory at a time
SHARED = "0"  # the stream that all plans share before the first layer; the dense model keeps it

# Layer i of each plan, from its index and its statistics, while it is present. Asked for again after an interruption,
# it must be the same without statistics.
PlansOfLayer = Callable[[int, LayerStatistics | None], Sequence[LayerPlan]]


@dataclass(frozen=True)
class PlanDivergence:
    """KL(dense ‖ pruned) of the next-token distributions of several plans, in nats a token, from one walk.

    Plans share a stream of hidden states as long as their layers are equal. Where their plans of a layer differ, the
    stream forks. Each layer is read once and pruned once for each different plan of it, in a copy. Of several processes
    each has the streams of its share of the plans, and the dense one. The windows are the
    last ones of those that are held out when fits are chosen; the maps of trials are fitted without them. The
    predictions of every fourth position are compared: those of its neighbours say little more, and over a large
    vocabulary they cost as much as many layers. In texts that have answers, all predictions of their tokens are.

    Where the calibration is a mixture, the divergence is that of the text on which it is largest: what only one of the
    texts needs is likely to be needed by another text that nobody has calibrated on, and a mean would hide it.
    """

    calibration: Calibration
    compensation: Compensation

    def __call__(
        self, plans: PlansOfLayer, num_tokens: int, covariance: bool, work: WorkFolder = NOT_KEPT
    ) -> list[float]:
        """Return the divergence of each plan, measured on `num_tokens` tokens, rounded up to whole windows.

        Of each text that has windows held out there is one at least. covariance: of statistics, for the plans or their
        fits. work: an interrupted walk resumes from it; it is deleted at the end.

        Raises:
            ValueError: predictions are not finite.
        """
        nats = self._walked(
            Walk(self.calibration.model, "score, layer by layer", work),
            plans,
            num_tokens,
            covariance,
        )
        work.clear()  # with the hidden states of all plans, which are not mapped any more
        return nats

    def _walked(
        self, walk: Walk, plans: PlansOfLayer, num_tokens: int, covariance: bool
    ) -> list[float]:
        """Return the divergence of each plan, after one walk."""
        tokens_NT, text_N = self.windows(num_tokens)
        dense = dense_plan(self.calibration.model)

        def with_dense(i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
            return [dense.layers[i], *ranks.own_share(plans(i, observed))]

        # the streams that an interrupted walk had when it was killed
        names: list[str] = []
        for i in range(walk.layers_done):
            names = _next_streams(with_dense(i, None), names)
        streams = {SHARED: walk.enter(SHARED, [tokens_NT])}
        for name in set(names) - {SHARED}:
            streams[name] = walk.restored(name, streams[SHARED])

        for i, observed in self.calibration.along(walk, covariance):
            layer_plans = with_dense(i, observed)
            forks, names = self._advance(i, layer_plans, observed, streams, names)
            del observed  # with its covariances, before the next layer's are collected
            walk.replace(streams, forks)
            streams = forks

        outputs = [streams[name].batches[0] for name in names]
        return ranks.gather_in_order(self._nats(tokens_NT, text_N, outputs))

    def windows(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return tokens_NT and text_N of the windows that are measured."""
        tokens_NT = self.calibration.tokens_NT
        text_N = self.calibration.text_N
        text_N = torch.zeros(len(tokens_NT), dtype=torch.long) if text_N is None else text_N
        (_, held_NT), (_, held_N) = split_windows(tokens_NT), split_windows(text_N)
        last = _last(held_N, math.ceil(num_tokens / tokens_NT.shape[1]))
        return judged(held_NT[last], held_N[last]), held_N[last]

    def _advance(
        self,
        i: int,
        plans: Sequence[LayerPlan],
        observed: LayerStatistics | None,
        streams: Mapping[str, Stream],
        names: list[str],
    ) -> tuple[dict[str, Stream], list[str]]:
        """Run layer i as each plan says.

        names: the stream of each plan before the layer; empty before the first one. Returns the
        streams after the layer, and the name of each plan's stream.
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
    def _nats(self, tokens_NT: Tensor, text_N: Tensor, hidden: Sequence[Tensor]) -> list[float]:
        """Return the divergence from the dense model, averaged over a text's tokens, for each plan: its worst text's.

        hidden: the outputs of the last layer for these windows, first of the dense model, then of each plan.
        """
        model = self.calibration.model
        num_texts = int(text_N.max()) + 1
        plans = len(hidden) - 1
        total_KX = torch.zeros(plans, num_texts).double()
        tokens_X = torch.zeros(num_texts)
        with model.ends():
            for of_N, some_NT, dense_NTD, *others in _compared(tokens_NT, text_N, *hidden):
                dense_NTV = log_softmax(_logits(model, some_NT, dense_NTD), dim=-1)
                p_NTV = dense_NTV.exp()
                for k, hidden_NTD in enumerate(others):
                    logits_NTV = _logits(model, some_NT, hidden_NTD)
                    inputs = zip(p_NTV, dense_NTV, logits_NTV, strict=True)
                    nats = [kl(*window) for window in inputs]
                    total_KX[k].index_add_(0, of_N, torch.tensor(nats, dtype=torch.float64))
                tokens_X.index_add_(0, of_N, torch.full(of_N.shape, float(some_NT.shape[1])))
        if not total_KX.isfinite().all():
            raise ValueError(
                "structure=search: predictions of a pruned model are not finite; try model.dtype=float32 or bfloat16, "
                "or check the weights"
            )
        # not below 0 by rounding; a text of which no window is among these has no say
        return list(map(float, (total_KX / tokens_X.clamp(min=1)).amax(dim=1).clamp(min=0)))


def kl(p_TV: Tensor, log_p_TV: Tensor, logits_TV: Tensor) -> float:
    """Return KL(p ‖ q) in nats, summed over all positions of a window: differences before sums.

    Σ p log p - Σ p log q as two sums of T · V terms cancel badly: that was off by 0.001 nats a token at 50,000 words.
    p: of the dense model. q: of the pruned one, whose logits are given.
    """
    nats_TV = log_softmax(logits_TV, dim=-1)
    # in place: to have such an array of the system takes as long as to compute it
    return torch.sub(log_p_TV, nats_TV, out=nats_TV).mul_(p_TV).sum().item()


def _last(text_N: Tensor, num_windows: int) -> Tensor:
    """Return the places of the last windows, and of the last one of each text that has none among them."""
    last = {int(x): n for n, x in enumerate(text_N)}.values()
    return torch.tensor(sorted({*last, *range(max(0, len(text_N) - num_windows), len(text_N))}))


def _compared(tokens_NT: Tensor, text_N: Tensor, *streams: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield text_N, tokens_NT and each stream's hidden_NTD of a few windows, at the positions that are compared.

    Of texts that have answers these are all where a token of an answer is predicted.
    """
    all_T = torch.arange(tokens_NT.shape[1])
    with_answers = set(text_N[(tokens_NT < 0).any(dim=1)].tolist())
    some = 1 if with_answers else max(1, COMPARED_TOKENS // len(all_T))
    for n in range(0, len(tokens_NT), some):
        part = slice(n, n + some)
        chosen_T = all_T[min(EVERY, len(all_T)) - 1 :: EVERY]
        if int(text_N[n]) in with_answers:
            counted_T = counted_predictions(tokens_NT[part])
            chosen_T = all_T if counted_T is None else all_T[counted_T]
        for at in filter(len, chosen_T.split(COMPARED_TOKENS)):
            yield (
                text_N[part],
                unmarked(tokens_NT[part, at]),
                *(stream[part, at] for stream in streams),
            )


def dense_plan(model: PlacedModel) -> PruningPlan:
    """Return the plan that keeps every unit of a model."""
    blocks = (model.adapter.blocks(i) for i in range(len(model.layers)))
    return PruningPlan(
        tuple(LayerPlan(*(tuple(range(block.num_units)) for block in pair)) for pair in blocks)
    )


@contextmanager
def pruned_layer(
    model: PlacedModel, i: int, plan: LayerPlan, fits: Pair[BlockFit | None]
) -> Iterator[nn.Module]:
    """Yield a pruned copy of layer i, which must be present; the layer itself if the plan keeps every unit."""
    layers = model.layers
    dense = layers[i]
    if fits == (None, None):
        yield dense
        return
    layers[i] = model.copy_layer(
        i
    )  # the copy takes the place of the layer, so that the adapter finds it
    try:
        write_layer(slice_out, model.adapter, i, plan, fits)
        copied = layers[i]
    finally:
        layers[i] = dense
    yield copied


def _next_streams(plans: Sequence[LayerPlan], before: Sequence[str]) -> list[str]:
    """Return the name of each plan's stream after a layer. Plans with equal layers so far share one.

    before: the names before the layer; empty before the first one, where all plans share a stream.
    """
    names: dict[tuple[str, LayerPlan], str] = {}
    pairs = zip(before or [SHARED] * len(plans), plans, strict=True)
    return [names.setdefault(pair, str(len(names))) for pair in pairs]


def _logits(model: PlacedModel, tokens_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
    """Return logits_NTV in float32 from the outputs of the last layer."""
    tokens_NT = tokens_NT.to(model.device)
    hidden_NTD = hidden_NTD.to(model.device)
    logits_NTV: Tensor = output_after_layers(
        model.adapter, model.model, tokens_NT, hidden_NTD
    ).logits
    return logits_NTV.float()
