"""Example of a metric, a structure and an evaluator of your own.

docs/own.md shows how to use them.
"""

from dataclasses import asdict, dataclass
from functools import partial

from flap.evaluation import Evaluator, Measurement, Task
from flap.method.allocation import UniformLayers
from flap.method.importance import Metric


@dataclass(frozen=True)
class Range(Metric):
    """A metric with score_j = std_j · max_o |W_oj| for each input channel j; higher = keep.

    std_j is the standard deviation of input channel j. W_oj is the weight from input channel j to
    output channel o.
    """

    def score(self, weight_OI, statistics):
        return statistics.var_I.sqrt() * weight_OI.abs().amax(dim=0)


@dataclass(frozen=True)
class Neurons(UniformLayers):
    """A structure that removes only neurons. Each layer loses the same share of its weights."""

    def removed_kv_heads(self, budget):
        return [0] * len(budget.layers)


@dataclass(frozen=True)
class Sentence(Evaluator):
    """An evaluator that measures the loss of a sentence in nats per token; lower is better.

    Reports call this loss `sentence/loss`.
    """

    text: str = "Paris is the capital of France."

    def prepare(self, tokenizer, max_length):
        ids_NT = tokenizer(self.text, return_tensors="pt").input_ids
        return [Task("sentence", partial(self.measure, ids_NT), asdict(self))]

    def measure(self, ids_NT, placed):
        ids_NT = ids_NT.to(placed.device)
        loss = placed.model(ids_NT, labels=ids_NT).loss
        return Measurement({"sentence/loss": loss.item()}, better={"sentence/loss": "lower"})
