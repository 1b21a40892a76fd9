"""Prune with your own function as the metric, and with your own texts, without a config file.

    python examples/function.py MODEL FOLDER

MODEL is a directory or a hub id. The script writes the pruned model to FOLDER.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import flap


def largest_output(weight_OI, statistics):
    """Return score_j = std_j · max_o |W_oj| for each input channel j; higher = keep.

    std_j is the standard deviation of input channel j. W_oj is the weight from input channel j to
    output channel o.
    """
    return statistics.var_I.sqrt() * weight_OI.abs().amax(dim=0)


def main(model_id: str, folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_id)
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    texts = [f"Order {i} has been sent to the old house on the hill." for i in range(400)]
    report = flap.prune(
        model, tokenizer, metric=largest_output, dataset=texts, num_samples=16, seq_len=64
    )
    print(f"metric:      {report.config['metric']['_target_']}")
    print(f"calibration: {report.sources['calibration']}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
