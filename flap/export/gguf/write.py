"""Write the tensors of a GGUF file, each in its type; one tensor is in memory at a time."""

import logging
from math import prod

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from flap.export.gguf.tensors import TensorEntry

log = logging.getLogger(__name__)

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_tensors(writer: GGUFWriter, tensors: list[TensorEntry], kind: str) -> None:
    """Write the header, the keys, the table of tensors and the tensors, and close the file.

    Raises:
        ValueError: a matrix has values that its type cannot represent.
    """
    typed = [(entry, _type_of(entry, kind)) for entry in tensors]
    for entry, tensor_type in typed:
        block, size = gguf.GGML_QUANT_SIZES[tensor_type]
        num_bytes = prod(entry.shape) // block * size
        writer.add_tensor_info(entry.name, entry.shape, np.dtype("float32"), num_bytes, tensor_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, tensor_type in typed:
            writer.write_tensor_data(_encode(entry, tensor_type))
    finally:
        writer.close()
    _warn_fallback(typed, TYPES[kind][0])


def _type_of(entry: TensorEntry, kind: str) -> GGMLQuantizationType:
    """Return the type of a tensor: f32 for what llama.cpp wants so; f16 for rows that do not divide into blocks."""
    if _stays_f32(entry):
        return GGMLQuantizationType.F32
    requested = TYPES[kind][0]
    block, _ = gguf.GGML_QUANT_SIZES[requested]
    return requested if entry.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _stays_f32(entry: TensorEntry) -> bool:
    """Return whether a tensor is a vector, the biases of experts, a router, or the embeddings of positions."""
    return len(entry.shape) == 1 or entry.name.endswith((".bias", "ffn_gate_inp.weight", "position_embd.weight"))


def _encode(entry: TensorEntry, tensor_type: GGMLQuantizationType) -> np.ndarray:
    values = entry.make().numpy()
    if tensor_type == GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"gguf: {entry.name} has values beyond float16; take type bf16 or f32")
    encoded: np.ndarray = gguf.quants.quantize(values, tensor_type)
    return encoded


def _warn_fallback(typed: list[tuple[TensorEntry, GGMLQuantizationType]], requested: GGMLQuantizationType) -> None:
    """Warn of matrices that are not of the requested type."""
    matrices = [tensor_type for entry, tensor_type in typed if not _stays_f32(entry)]
    fallbacks = sum(tensor_type != requested for tensor_type in matrices)
    if fallbacks:
        log.warning(
            "%d of %d matrices are f16: %s takes rows of a multiple of 32, and round_to=32 makes them so",
            *(fallbacks, len(matrices), requested.name.lower()),
        )
