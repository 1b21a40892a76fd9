"""Write a checkpoint as an atomic GGUF file: check it, choose the architecture, write keys and tensors."""

import logging
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from flap.checkpoint.export.checkpoint import end_tokens, read_checkpoint
from flap.checkpoint.export.gguf.model import LazyTensor, check_model, opened
from flap.checkpoint.export.gguf.tokenizer import add_tokenizer, source_gguf
from flap.storage.atomic_files import atomic_file

log = logging.getLogger(__name__)


def export_gguf(checkpoint: Path, kind: str = "f16") -> Path:
    """Write `model-<kind>.gguf` into a checkpoint's directory, and return its path.

    kind: a `--type` of the command, that of all matrices, also of the embedding and the head. Vectors are f32. With a
    type of blocks, a matrix is f16 if the length of its rows is not a multiple of 32.

    Raises:
        ValueError: there is no checkpoint, GGUF cannot hold it, or the file cannot be written.
    """
    target = checkpoint / f"model-{kind}.gguf"
    config, tokenizer = read_checkpoint(checkpoint)
    check_model(config)
    source = source_gguf(str(checkpoint))
    ends = end_tokens(checkpoint, config)
    try:
        with atomic_file(target) as scratch:
            writer, tensors = opened(scratch, checkpoint, config)
            writer.add_file_type(
                LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"]
            )
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            add_tokenizer(writer, tokenizer, source, config.vocab_size, ends)
            _write(writer, tensors, kind)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _write(writer: GGUFWriter, tensors: list[LazyTensor], kind: str) -> None:
    """Write the header, the keys, the table of tensors and the tensors, one at a time in memory, and close the file."""
    requested = GGMLQuantizationType[kind.upper()]
    typed = [(one, _type_of(one, requested)) for one in tensors]
    for one, type_ in typed:
        num_bytes = prod(gguf.quant_shape_to_byte_shape(one.shape, type_))
        writer.add_tensor_info(one.name, one.shape, np.dtype("float32"), num_bytes, type_)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one, type_ in typed:
            writer.write_tensor_data(_encoded(one, type_))
    finally:
        writer.close()
    matrices = [type_ for one, type_ in typed if not _stays_f32(one)]
    if fallbacks := sum(type_ != requested for type_ in matrices):
        log.warning(
            "%d of %d matrices are f16: %s takes rows of a multiple of 32, and round_to=32 makes them so",
            *(fallbacks, len(matrices), kind),
        )


def _type_of(tensor: LazyTensor, requested: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the type of a tensor: f32 for what llama.cpp wants so; f16 for rows that do not divide into blocks."""
    if _stays_f32(tensor):
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[requested]
    return requested if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _stays_f32(tensor: LazyTensor) -> bool:
    """Return whether a tensor is a vector, the biases of experts, a router, or the embeddings of positions."""
    return len(tensor.shape) == 1 or tensor.name.endswith(
        (".bias", "ffn_gate_inp.weight", "position_embd.weight")
    )


def _encoded(tensor: LazyTensor, type_: GGMLQuantizationType) -> np.ndarray:
    """Return the data of a tensor in its type, which has to represent its values."""
    values = tensor.read().numpy()
    if type_ == GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError(f"gguf: {tensor.name} has values beyond float16; take type bf16 or f32")
    encoded: np.ndarray = gguf.quants.quantize(values, type_)
    return encoded
