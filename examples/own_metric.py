"""A metric of your own (docs/own.md), beside WIFV from Python: `python examples/own_metric.py MODEL TEXT`."""

import sys
from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoTokenizer

import flap
from flap.method.importance import WIFV, Metric


@dataclass(frozen=True)
class Range(Metric):
    """score_j = std_j · max_o |W_oj|; higher = keep."""

    def score(self, weight_OI, statistics):
        return statistics.var_I.sqrt() * weight_OI.abs().amax(dim=0)


def main(model_id: str, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    more = ("eval=[perplexity]", f"eval.perplexity.datasets=[{text}]")
    for metric in (WIFV(), Range()):
        model = AutoModelForCausalLM.from_pretrained(model_id)  # flap.prune changes it in place
        report = flap.prune(model, tokenizer, metric=metric, dataset=text, num_samples=16, overrides=more)
        print(type(metric).__name__, report.evaluation["pruned"])


if __name__ == "__main__":
    main(*sys.argv[1:])
