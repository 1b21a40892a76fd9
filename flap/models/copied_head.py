"""A head of a GGUF that is a copy of the embedding.

Where a model uses one matrix as its embedding and as its head, a GGUF can hold this matrix twice:
with few bits for looking up tokens, and with more bits for predicting them.

Legend: V vocabulary · D hidden size
"""

import re

from torch import Tensor
from transformers import PreTrainedModel

from flap.models.gguf_header import GGUFHeader

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
# Bits of the significands of types that are not quantised.
SIGNIFICANDS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
# With b bits, normally distributed weights in blocks of 32 lose 1.37 / 2^b of their norm. Weights
# of a model, and types of other blocks, lose up to half as much again.
ROUNDING = 1.5 * 1.37
ROWS = 16384  # rows that are compared at once


def tie_copied_head(model: PreTrainedModel, header: GGUFHeader) -> str:
    """Tie head and embedding to the more precise one, if they differ by nothing but their rounding.

    That is the case if ‖E - H‖ / ‖H‖ ≤ 2.06 / 2^b, where b is the number of bits of the coarser
    type. With one bit this would be true of unrelated matrices, so nothing is tied.

    The weights decide, and not what is usual in the architecture: LLaMA has tied models (3.2 1B)
    and untied ones (3.1 8B) with the same config class. A copy is a copy in both.

    Returns what was done, in words, or an empty text if nothing was.
    """
    if not {EMBEDDING, HEAD} <= header.tensors.keys():
        return ""
    types = {name: header.tensors[name].tensor_type.name for name in (EMBEDDING, HEAD)}
    bits = {name: _bits(types[name]) for name in types}
    coarser = min(bits.values())
    if coarser == 1:
        return ""
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    difference = relative_difference(embedding.weight.data, head.weight.data)
    if difference > ROUNDING / 2**coarser:
        return ""

    precise = head.weight if bits[HEAD] > bits[EMBEDDING] else embedding.weight
    embedding.weight = precise
    head.weight = precise
    model.config.tie_word_embeddings = True
    return (
        f"its head ({types[HEAD]}) is a copy of its embedding ({types[EMBEDDING]}), relative "
        f"difference {difference:.3f}: both are tied to the more precise one "
        "(model.tie_copied_head=false keeps them apart)"
    )


def relative_difference(first_VD: Tensor, second_VD: Tensor) -> float:
    """Return ‖first - second‖ / ‖second‖; infinite if the shapes differ."""
    if first_VD.shape != second_VD.shape:
        return float("inf")
    difference = 0.0
    total = 0.0
    for first, second in zip(first_VD.split(ROWS), second_VD.split(ROWS), strict=True):
        difference += float((first - second).double().square().sum())
        total += float(second.double().square().sum())
    return (difference / total) ** 0.5 if total else float("inf")


def _bits(quantisation: str) -> int:
    """Return the bits of a weight in a type of a GGUF, without scales: 4 for "Q4_K"."""
    if quantisation in SIGNIFICANDS:
        return SIGNIFICANDS[quantisation]
    digits = re.search(r"\d+", quantisation)
    assert digits is not None  # every type has its bits in its name
    return int(digits[0])
