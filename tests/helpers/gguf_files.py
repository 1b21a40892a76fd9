"""Write GGUF files as other programs do: with header keys, a tokenizer, and tensors of any type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, get_tensor_name_map
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.export.gguf.tokenizer import add_tokenizer
from tests.helpers.tokenizers import KINDS

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# In transformers, Gemma's norms multiply by 1 + weight. A GGUF file contains the sum 1 + weight
# instead of the weight.
NORMS_WITHOUT_ONE = ("gemma2", "gemma3")


def words(kind: str = "smollm") -> PreTrainedTokenizerFast:
    """Return a tiny tokenizer with a chat template."""
    made = KINDS[kind]()
    made.chat_template = TEMPLATE
    return made


def write_gguf(
    path: Path,
    architecture: str,
    model: PreTrainedModel,
    keys: dict[str, Any],
    encode: Callable[[int, np.ndarray], dict[str, Any]] = lambda seed, matrix: {"tensor": matrix},
) -> Path:
    """Write a model to a GGUF file.

    keys: header keys of the architecture, without the prefix that names the architecture.
    encode: a function that receives the index and the values of a matrix, and returns the arguments
        of `GGUFWriter.add_tensor` for it, except the name.
    """
    writer = GGUFWriter(path, architecture)
    _add_config(writer, model.config)
    for key, value in keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    add_tokenizer(writer, words("qwen2"), None, model.config.vocab_size, ())
    archs = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(MODEL_ARCH(archs[architecture]), model.config.num_hidden_layers)
    for seed, (name, tensor) in enumerate(model.named_parameters()):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 2:
            writer.add_tensor(target, **encode(seed, tensor.detach().numpy()))
        else:
            offset = 1.0 if architecture in NORMS_WITHOUT_ONE and "norm" in name else 0.0
            writer.add_tensor(target, (tensor.detach() + offset).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_config(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None)
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_string("general.base_model.0.repo_url", "https://huggingface.co/org/base")


def set_number(path: Path, key: str, value: int) -> None:
    """Change one number in the header of a GGUF file."""
    field = GGUFReader(path, "r+").fields[key]
    field.parts[field.data[0]][0] = value
