"""Quantise a pruned checkpoint for vLLM.

    python -m venv llmc; llmc/bin/pip install llmcompressor
    llmc/bin/python examples/quantise.py CHECKPOINT TARGET [SCHEME]

llm-compressor needs other package versions than flap, so install it into a separate environment.
You do not need to install flap there.

The schemes FP8_DYNAMIC, W8A8 and W4A16 only round weights, so they need no calibration data. Use
this script for models without experts. W4A16 needs weight matrices whose row length is a multiple
of 128 (`round_to=128`).
"""

import sys

from llmcompressor import model_free_ptq


def main(checkpoint: str, target: str, scheme: str = "FP8_DYNAMIC") -> None:
    """Write a copy of the checkpoint in which the matrices of the decoder layers are quantised."""
    model_free_ptq(checkpoint, target, scheme, ignore=["lm_head", r"re:.*\.embed_tokens$"])


if __name__ == "__main__":
    main(*sys.argv[1:])
