"""Quantise a pruned checkpoint for vLLM.

    python -m venv llmc; llmc/bin/pip install llmcompressor
    llmc/bin/python examples/quantise.py CHECKPOINT TARGET [SCHEME]

llm-compressor needs other versions of some packages than flap does, so install it into a separate
environment. You do not need flap in that environment.

The script quantises the pruned checkpoint in the folder CHECKPOINT, and writes the result to the
folder TARGET. SCHEME is FP8_DYNAMIC (default), W8A8 or W4A16. This script only rounds the weights,
so it needs no calibration data. It supports only models without experts. W4A16 needs weight
matrices whose row length is a multiple of 128; prune with `round_to=128` to get such matrices.
"""

import sys

from llmcompressor import model_free_ptq


def main(checkpoint: str, target: str, scheme: str = "FP8_DYNAMIC") -> None:
    """Write to `target` a copy of the checkpoint with quantised matrices in the decoder layers."""
    model_free_ptq(checkpoint, target, scheme, ignore=["lm_head", r"re:.*\.embed_tokens$"])


if __name__ == "__main__":
    main(*sys.argv[1:])
