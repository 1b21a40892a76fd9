"""Write a checkpoint as an atomic GGUF file: check it, choose the architecture, write keys and tensors."""

from pathlib import Path

import gguf
from gguf import GGUFWriter
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from flap.config.messages import one_line
from flap.export.gguf.architecture import NO_CHANGES, GGUFChanges, arch_name
from flap.export.gguf.families import architecture_of, check_architecture
from flap.export.gguf.hyperparameters import add_activation, add_hyperparameters, choose_architecture, layer_widths
from flap.export.gguf.rope import head_dim, rope_factors
from flap.export.gguf.tensors import Shards, TensorEntry, entries
from flap.export.gguf.tokenizer import add_tokenizer, carry_over, check_tokenizer, source_gguf
from flap.export.gguf.write import TYPES, write_tensors
from flap.export.reading import end_tokens, read_checkpoint
from flap.storage.atomic_files import atomic_file, write_text


def check_export(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, source: Path | None, changes: GGUFChanges = NO_CHANGES
) -> None:
    """Check that a model can be exported to GGUF, as far as that is known without its weights.

    source: the GGUF that the model came from, or None. changes: what pruning may do to the model.

    Raises:
        ValueError: the architecture or the tokenizer is not supported.
    """
    check_architecture(config, changes)
    check_tokenizer(tokenizer, source, config.get_text_config().vocab_size)


def export_gguf(checkpoint: Path, kind: str = "f16") -> Path:
    """Write `model-<kind>.gguf` and Ollama's `Modelfile` for it into a checkpoint's directory; return the GGUF's path.

    kind: one of TYPES, the type of the matrices. Vectors are f32. With q8_0, a matrix is f16 if the length of its rows
    is not a multiple of 32.

    Raises:
        ValueError: there is no checkpoint, GGUF cannot hold it, or the file cannot be written.
    """
    target = checkpoint / f"model-{kind}.gguf"
    config, tokenizer = read_checkpoint(checkpoint)
    source = _source(checkpoint)
    check_architecture(config)
    try:
        with atomic_file(target) as scratch:
            _write(checkpoint, scratch, kind, config, tokenizer, source)
        # Ollama takes everything else from the keys of the GGUF
        write_text(checkpoint / "Modelfile", f"# ollama create NAME -f Modelfile\nFROM ./{target.name}\n")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _source(checkpoint: Path) -> Path | None:
    """Return the GGUF that the model of a checkpoint came from, or None."""
    try:
        return source_gguf(str(checkpoint))
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint}: its flap.json cannot be read ({one_line(error, 300)})") from error


def _write(
    checkpoint: Path,
    path: Path,
    kind: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | None,
) -> None:
    shards, row = Shards.open(checkpoint), architecture_of(config)
    tensors = entries(shards, row, config)
    widths = layer_widths(tensors, head_dim(config), config.num_hidden_layers)
    arch = choose_architecture(row, config, widths)
    if (factors := rope_factors(config)) is not None:
        tensors.append(TensorEntry("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    writer = GGUFWriter(path, arch_name(arch))
    add_hyperparameters(writer, config, row, widths, by_layer=arch == row.by_layer)
    add_activation(writer, shards, config.num_hidden_layers)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if source is None:
        add_tokenizer(writer, tokenizer, config.vocab_size, end_tokens(checkpoint, config))
    else:
        carry_over(writer, source, tokenizer)
    write_tensors(writer, tensors, kind)
