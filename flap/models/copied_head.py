"""Find out whether the LM head in a GGUF file is a copy of the embedding, and tie the two if it is.

If a model uses one matrix as its embedding and as its LM head, a GGUF file may contain this matrix
twice: with few bits as the embedding, and with more bits as the LM head.

Legend: V: tokens of the vocabulary · D: hidden size.
"""

import re

from torch import Tensor
from transformers import PreTrainedModel

from flap.models.gguf_header import GGUFHeader

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
# The number of bits in the significand of each floating-point type of GGUF tensors.
SIGNIFICANDS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
# The largest relative rounding error of weights that are quantised to b bits, multiplied by 2^b.
# The relative error is the norm of the rounding errors, divided by the norm of the weights. This
# relative error is 1.37 / 2^b for normally distributed weights in blocks of 32, and up to 1.5 times
# as large for the weights of trained models and for other block sizes.
ROUNDING = 1.5 * 1.37
ROWS = 16384  # number of rows that are compared at a time


def tie_copied_head(model: PreTrainedModel, header: GGUFHeader) -> str:
    """Tie LM head and embedding to the more precise of the two if they differ only by rounding.

    Let b be the number of bits per weight (`_bits`) of the less precise matrix. The embedding E and
    the LM head H count as equal except for rounding if ‖E - H‖ / ‖H‖ ≤ 2.06 / 2^b. If b = 1,
    nothing is tied, because unrelated matrices may also satisfy this inequality.

    The decision uses the weights and not the architecture, because a tied model (LLaMA 3.2 1B)
    and an untied model (LLaMA 3.1 8B) may have the same config class.

    Return a description of the change, or an empty string if nothing was tied.
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
    """Return the difference ‖first - second‖ / ‖second‖, or infinity if the shapes differ."""
    if first_VD.shape != second_VD.shape:
        return float("inf")
    difference = 0.0
    total = 0.0
    for first, second in zip(first_VD.split(ROWS), second_VD.split(ROWS), strict=True):
        difference += float((first - second).double().square().sum())
        total += float(second.double().square().sum())
    return (difference / total) ** 0.5 if total else float("inf")


def _bits(quantisation: str) -> int:
    """Return the precision of a GGUF type in bits, such as 4 for "Q4_K" and 11 for "F16".

    Exponents, and the scales of quantised types, do not count.
    """
    if quantisation in SIGNIFICANDS:
        return SIGNIFICANDS[quantisation]
    digits = re.search(r"\d+", quantisation)
    assert digits is not None  # the name of every quantised type contains its number of bits
    return int(digits[0])
