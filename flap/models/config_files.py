"""Read the config and the tokenizer of a model, with errors that name the damaged file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from flap.config import one_line
from flap.modeling.register import register_configs, register_models
from flap.models.weights import largest_number
from flap.storage import load_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
# Config keys that give the number of layers of a language model or of a vision tower.
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth")
KERNEL_KEYS = ("_attn_implementation", "attn_implementation")
# Errors that transformers raises if a value in a config has an unexpected type.
WRONG_VALUES = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, ImportError)


def read_config(path: str | Path, **options: Any) -> PreTrainedConfig:
    """Read the config of a dense or pruned model with `AutoConfig.from_pretrained`.

    For a pruned model, also register its model classes with the Auto classes. The model classes of
    other pruned architectures are not registered, because importing all of them takes half a
    second.

    options: arguments of `from_pretrained`.

    Raises:
        OSError: there is no config, or it cannot be downloaded.
        ValueError: the config cannot be read, or one of its values is invalid.
    """
    register_configs()
    check_config(Path(path))
    try:
        config = AutoConfig.from_pretrained(path, **options)
    except StrictDataclassError as error:
        raise ValueError(f"{CONFIG}: {one_line(error, 300)}") from error
    except WRONG_VALUES as error:
        raise ValueError(f"{CONFIG}: {type(error).__name__}: {one_line(error, 300)}") from error
    register_models(type(config))
    return config


def read_tokenizer(
    path: str | Path, trust_remote_code: bool | None = None
) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model.

    Raises:
        OSError: there is no tokenizer, or it cannot be downloaded.
        ValueError: a file of the tokenizer is damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exceptions for damaged files
        for name in TOKENIZER_FILES:
            if (Path(path) / name).is_file():
                read_object(Path(path) / name)
        if isinstance(error, OSError | ValueError):
            raise
        raise ValueError(f"{type(error).__name__}: {one_line(error, 300)}") from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        ValueError: the file is missing or damaged, or does not contain a JSON object.
    """
    try:
        value = load_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name}: cannot be read as JSON ({one_line(error, 300)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file.name}={json.dumps(value)[:40]}: must be a JSON object")
    return value


def check_config(directory: Path) -> None:
    """Check the config.json in a directory before transformers uses its values.

    Raises:
        ValueError: config.json or generation_config.json contains no JSON object, the number of
            layers is invalid, the attention implementation is a kernel from the hub, or the config
            of a pruned model lacks the numbers of heads and neurons of its layers.
    """
    if not (directory / CONFIG).is_file():
        return  # `directory` is a hub id, or transformers will report that the file is missing
    config = read_object(directory / CONFIG)
    if (directory / GENERATION_CONFIG).is_file():
        read_object(directory / GENERATION_CONFIG)
    for name, value in _values(config):
        key = name.rpartition(".")[2]
        if key in LAYER_KEYS and isinstance(value, int):
            _check_layers(name, value, directory)
        if key in KERNEL_KEYS and "/" in str(value):
            raise ValueError(
                f"{CONFIG}: {name}={value}: must be an implementation in transformers, such as "
                "sdpa or eager; kernels from the hub are not run"
            )
    if str(config.get("model_type")).startswith("flap_"):
        _check_has_widths(config)


def _values(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the items of a config and of its nested configs, such as `text_config`."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{key}.{inner}", inner_value


def _check_layers(name: str, layers: int, directory: Path) -> None:
    if layers < 1:
        raise ValueError(f"{CONFIG}: {name}={layers}: must be at least 1")
    largest = largest_number(directory)
    if largest is not None and layers > largest + 1:
        raise ValueError(
            f"{CONFIG}: {name}={layers}: must be at most {largest + 1}, because no tensor in the "
            f"weights has a larger number than {largest}"
        )


def _check_has_widths(config: dict[str, Any]) -> None:
    language_model = config.get("text_config", config)
    widths = language_model.get("per_layer_config") if isinstance(language_model, dict) else None
    is_table = isinstance(widths, dict) and all(isinstance(one, dict) for one in widths.values())
    if not widths or not is_table:
        raise ValueError(
            f"{CONFIG}: per_layer_config: must have the widths of each layer, because "
            f"model_type={config['model_type']} is a pruned model"
        )
