"""Whole experts and neurons in one budget: `python experiments/experts/joint.py MODEL --ratio 0.25 --seed 0`.

A share of the parameters of a mixture's MLPs leaves. Two searches in turn, at several splits: the first removes whole
experts, the second neurons of those that stay, calibrated anew. Against them one greedy ranking of both, in nats a
parameter: from each layer leaves next the expert or the neuron (one of every expert) with the least

    expert: n_e / (3 D · neurons that an expert has left)      neuron: s n_i / (3 D · experts that are left)

where n are the nats of `structure=search`, each measured on the dense model, and s the share of the experts that are
left, or 1: so the price of a unit of one kind falls as units of the other leave. Prints KL(dense ‖ pruned) in nats a
token on texts that took no part; lower is better.
Legend: E experts · I neurons of one · D hidden size · N windows · T tokens.
"""

import argparse
import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import Budget, LayerPlan, PruningPlan, price
from flap.calibration import Calibration, collect
from flap.compression import BiasCompensation, compress, slice_layer
from flap.config import ModelConfig
from flap.data import evaluation_windows, read_text
from flap.data.read_windows import Wanted, read_windows
from flap.importance import WIFV, Scores, score_layers
from flap.models import CheckpointSource, Pair, Resident, adapt, find_model
from flap.search import PlanDivergence, Search
from flap.search.trials import without_lowest
from flap.storage import NOT_KEPT, cache_root

CALIBRATION, TEXTS = "boolq-passages", ("boolq-passages", "sciq-passages")
FIT, LEVELS, BATCH = BiasCompensation(), [0.25, 0.5], 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model")
    options.add_argument("--ratio", type=float, default=0.25, help="share of the MLPs' parameters to remove")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--windows", type=int, default=32, help="of 256 tokens, to calibrate on")
    options.add_argument("--tokens", type=int, default=2048, help="of each text, to measure on")
    given = options.parse_args()
    source = find_model(ModelConfig(given.model, given.model, dtype="bfloat16"), cache_root(None), False)
    found, held_out = Study(source, given), Measured(source, given.tokens)
    for name, model in found.models(given.ratio):
        print(f"{name}: kept {parameters(model) / parameters(found.dense):.3f}, KL {held_out.of(model)}", flush=True)


class Measured:
    """The KL of models to the dense one, on held-out text."""

    @torch.no_grad()
    def __init__(self, source: CheckpointSource, tokens: int) -> None:
        texts = {name: read_text(name, "evaluation", "text") for name in TEXTS}
        self.windows = {name: evaluation_windows(text, source.tokenizer, 128, tokens) for name, text in texts.items()}
        self.dense = {
            name: self.predictions(source.open().model, tokens_NT) for name, tokens_NT in self.windows.items()
        }

    @torch.no_grad()
    def predictions(self, model: PreTrainedModel, tokens_NT: Tensor) -> list[Tensor]:
        return [model(input_ids=part).logits[:, ::4].float().log_softmax(-1) for part in tokens_NT.split(BATCH)]

    def of(self, model: PreTrainedModel) -> str:
        found = []
        for name, tokens_NT in self.windows.items():
            pairs = zip(self.dense[name], self.predictions(model, tokens_NT), strict=True)
            nats_N = torch.cat([(p.exp() * (p - q)).sum(-1).mean(-1) for p, q in pairs])
            found.append(f"{name} {nats_N.mean():.4f} ± {nats_N.std() / len(nats_N) ** 0.5:.4f}")
        return ", ".join(found)


class Study:
    """The dense model, and models with less of its experts."""

    def __init__(self, source: CheckpointSource, given: argparse.Namespace) -> None:
        self.dense = source.open().model
        wanted = Wanted(given.windows, [256], given.seed, "auto")
        read = read_windows("calibration", CALIBRATION, source.tokenizer, wanted, source.max_length)
        self.windows = read.by_length

    def models(self, ratio: float) -> Iterable[tuple[str, PreTrainedModel]]:
        """Yield each pruned model with the name of how it was made."""
        experts, neurons = self.searched(self.dense, True), self.searched(self.dense, False)
        for share in (0, 0.25, 0.5, 0.75, 1):
            of_experts = share * ratio
            one = self.without(self.dense, of_experts, *experts) if of_experts else self.dense
            left = 1 - (1 - ratio) * parameters(self.dense) / parameters(one)
            if left > 1e-3:
                one = self.without(one, left, *(neurons if one is self.dense else self.searched(one, False)))
            yield f"two searches, {share:.0%} of it by experts", one
        for scaled in (False, True):
            widths = greedy(self.nats(*experts), self.nats(*neurons), self.dense, ratio, scaled)
            yield (
                f"one ranking{', s = share of experts left' if scaled else ', s = 1'} {widths}",
                self.cut(widths, experts),
            )

    def calibrated(self, model: PreTrainedModel, whole: bool) -> Calibration:
        placed = Resident(model)
        placed.adapter = adapt(model, whole)
        return Calibration(placed, self.windows, BATCH, collect(placed, self.windows, BATCH))

    def searched(self, model: PreTrainedModel, whole: bool) -> tuple[Calibration, Search, Scores]:
        calibration = self.calibrated(model, whole)
        search = Search(experts=whole, tokens=2048, levels=LEVELS).measuring(PlanDivergence(calibration, FIT))
        return calibration, search, search.score(WIFV(), calibration, of_mlps(calibration, 0.5), NOT_KEPT)

    def nats(self, calibration: Calibration, search: Search, scores: Scores) -> list[Tensor]:
        """Return the nats of each layer's units of the MLP, ascending; neurons: of one of every expert."""
        budget = of_mlps(calibration, 0.5)
        pairs = zip(search.in_nats(scores, budget), budget.prices, budget.layers, strict=True)
        return [(nats.mlp * prices.mlp).sort().values[:: units.mlp.members] for nats, prices, units in pairs]

    def without(
        self, model: PreTrainedModel, share: float, calibration: Calibration, search: Search, scores: Scores
    ) -> PreTrainedModel:
        """Return the model without a share of its experts' parameters."""
        return compressed(model, calibration, search.allocate(scores, of_mlps(calibration, share)), search.experts)

    def cut(self, widths: list[tuple[int, int]], experts: tuple[Calibration, Search, Scores]) -> PreTrainedModel:
        """Return the model with so many experts and neurons of each in each layer."""
        calibration, _, scores = experts
        plan = plan_of(
            [
                without_lowest(layer.mlp, len(layer.mlp) - k)
                for layer, (k, _) in zip(scores.layers, widths, strict=True)
            ],
            scores,
        )
        one = compressed(self.dense, calibration, plan, True)
        calibration = self.calibrated(one, False)
        scores = score_layers(WIFV(), calibration.model.adapter, enumerate(calibration.layers))
        triples = zip(scores.layers, widths, strict=True)
        kept = [without_lowest(layer.mlp, len(layer.mlp) // k - n, k) for layer, (k, n) in triples]
        return compressed(one, calibration, plan_of(kept, scores), False)


def greedy(
    experts: list[Tensor], neurons: list[Tensor], model: PreTrainedModel, ratio: float, scaled: bool
) -> list[tuple[int, int]]:
    """Return how many experts and neurons of each stay in each layer. experts, neurons: nats, ascending."""
    widths = [[len(e), len(n)] for e, n in zip(experts, neurons, strict=True)]
    fewest, to_keep = model.config.num_experts_per_tok, (1 - ratio) * sum(e * n for e, n in widths)
    while sum(e * n for e, n in widths) > to_keep:
        found = []
        for layer, (e, n) in enumerate(widths):
            share = e / len(experts[layer]) if scaled else 1.0
            if e > fewest:
                found.append((float(experts[layer][-e]) / n, layer, 0))
            if n > 1:
                found.append((share * float(neurons[layer][-n]) / e, layer, 1))
        _, layer, kind = min(found)
        widths[layer][kind] -= 1
    return [(e, n) for e, n in widths]


def of_mlps(calibration: Calibration, share: float) -> Budget:
    """Return the budget that removes a share of the MLPs' parameters and nothing of the attention."""
    budget = price(calibration.model.adapter, 0.0)
    layers = tuple(Pair(replace(one.attention, fewest=one.attention.count), one.mlp) for one in budget.layers)
    return Budget(layers, share * sum(one.mlp.total for one in layers) / budget.total)


def plan_of(kept: list[tuple[int, ...]], scores: Scores) -> PruningPlan:
    heads = [tuple(range(len(layer.attention))) for layer in scores.layers]
    return PruningPlan(tuple(LayerPlan(*pair) for pair in zip(heads, kept, strict=True)))


def compressed(model: PreTrainedModel, calibration: Calibration, plan: PruningPlan, whole: bool) -> PreTrainedModel:
    pruned = copy.deepcopy(model)
    compress(adapt(pruned, whole), plan, FIT, enumerate(calibration.layers), slice_layer)
    return pruned


def parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters of all experts."""
    return sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)


if __name__ == "__main__":
    main()
