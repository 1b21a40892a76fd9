"""The tensors into the file: each in its type, one in memory at a time."""

import logging
from math import prod

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from flap.checkpoint.gguf.tensors import Entry

log = logging.getLogger(__name__)

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_tensors(writer: GGUFWriter, tensors: list[Entry], kind: str) -> None:
    """Finish the file: header, keys, the table of tensors, tensors.

    Raises:
        ValueError: a matrix has values that its type cannot hold.
    """
    typed = [(entry, _type_of(entry, kind)) for entry in tensors]
    for entry, which in typed:
        block, size = gguf.GGML_QUANT_SIZES[which]
        writer.add_tensor_info(entry.name, entry.shape, np.dtype("float32"), prod(entry.shape) // block * size, which)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, which in typed:
            writer.write_tensor_data(_encode(entry, which))
    finally:
        writer.close()
    _note_fallback(typed, TYPES[kind][0])


def _type_of(entry: Entry, kind: str) -> GGMLQuantizationType:
    """Vectors are f32, which is what llama.cpp adds them in; rows that do not divide into blocks are f16."""
    if len(entry.shape) == 1:
        return GGMLQuantizationType.F32
    wanted = TYPES[kind][0]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if entry.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _encode(entry: Entry, which: GGMLQuantizationType) -> np.ndarray:
    values = entry.make().numpy()
    if which == GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"gguf: {entry.name} has values beyond float16; take type bf16 or f32")
    encoded: np.ndarray = gguf.quants.quantize(values, which)
    return encoded


def _note_fallback(typed: list[tuple[Entry, GGMLQuantizationType]], wanted: GGMLQuantizationType) -> None:
    matrices = [which for entry, which in typed if len(entry.shape) > 1]
    others = sum(which != wanted for which in matrices)
    if others:
        log.warning(
            "%d of %d matrices are f16: %s takes rows of a multiple of 32, and round_to=32 makes them so",
            *(others, len(matrices), wanted.name.lower()),
        )
