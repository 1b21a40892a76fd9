"""Write a checkpoint as a GGUF file. The file appears only when it is complete."""

import logging
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from flap.checkpoint.export.checkpoint import end_tokens, read_checkpoint
from flap.checkpoint.export.gguf.model import LazyTensor, check_model, opened
from flap.checkpoint.export.gguf.source import source_gguf
from flap.checkpoint.export.gguf.tokenizer import add_tokenizer
from flap.storage.atomic_files import atomic_file

log = logging.getLogger(__name__)

# Suffixes of the names of matrices that llama.cpp needs in f32: the biases of experts, the
# routers, and the position embeddings.
ALWAYS_F32 = (".bias", "ffn_gate_inp.weight", "position_embd.weight")


def export_gguf(checkpoint: Path, kind: str = "f16") -> Path:
    """Write `model-<kind>.gguf` into the directory of a checkpoint and return its path.

    kind: the data type of all matrices, including the embedding and the LM head (option `--type`).
        Vectors are f32. A quantised type stores each row in blocks of 32 values. If the row length
        of a matrix is not a multiple of 32, the matrix is f16 instead.

    Raises:
        ValueError: there is no checkpoint, the export does not support its model or tokenizer, or
            the file cannot be written.
    """
    target = checkpoint / f"model-{kind}.gguf"
    config, tokenizer = read_checkpoint(checkpoint)
    check_model(config)
    source = source_gguf(str(checkpoint))
    ends = end_tokens(checkpoint, config)
    file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"

    try:
        with atomic_file(target) as scratch:
            writer, tensors = opened(scratch, checkpoint, config)
            writer.add_file_type(LlamaFileType[file_type])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            add_tokenizer(writer, tokenizer, source, config.vocab_size, ends)
            _write(writer, tensors, kind)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _write(writer: GGUFWriter, tensors: list[LazyTensor], kind: str) -> None:
    """Write the header, the metadata and the tensors. Only one tensor is in memory at a time."""
    requested = GGMLQuantizationType[kind.upper()]
    types = [_type_of(tensor, requested) for tensor in tensors]
    for tensor, type_ in zip(tensors, types, strict=True):
        num_bytes = prod(gguf.quant_shape_to_byte_shape(tensor.shape, type_))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), num_bytes, type_)

    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, type_ in zip(tensors, types, strict=True):
            writer.write_tensor_data(_encoded(tensor, type_))
    finally:
        writer.close()

    num_f16 = 0
    num_matrices = 0
    for tensor, type_ in zip(tensors, types, strict=True):
        if not _stays_f32(tensor):
            num_matrices += 1
            num_f16 += type_ != requested
    if num_f16:
        log.warning(
            "%d of %d matrices are f16, because their rows do not divide into the blocks of %s; "
            "a model that is pruned with round_to=32 has such rows",
            num_f16,
            num_matrices,
            kind,
        )


def _type_of(tensor: LazyTensor, requested: GGMLQuantizationType) -> GGMLQuantizationType:
    if _stays_f32(tensor):
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[requested]
    return requested if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _stays_f32(tensor: LazyTensor) -> bool:
    return len(tensor.shape) == 1 or tensor.name.endswith(ALWAYS_F32)


def _encoded(tensor: LazyTensor, type_: GGMLQuantizationType) -> np.ndarray:
    """Convert a tensor to a GGUF type.

    Raises:
        ValueError: the type is f16, and a value is too large for it.
    """
    values = tensor.read().numpy()
    if type_ == GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"gguf: {tensor.name} has values beyond float16; take type bf16 or f32")
    encoded: np.ndarray = gguf.quants.quantize(values, type_)
    return encoded
