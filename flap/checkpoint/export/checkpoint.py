"""Read checkpoints for exports, and check that an inference engine supports a model's settings."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from flap.config import how_to_install, one_line, shown
from flap.models import read_config, read_tokenizer
from flap.models.weights import check_weights

# A dict from the name of an export format to the inference engine that reads this format.
ENGINES = {"gguf": "llama.cpp", "mlx": "mlx-lm"}


def read_checkpoint(checkpoint: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the config and the tokenizer of a checkpoint.

    Raises:
        ValueError: there is no checkpoint, or its config or tokenizer cannot be read.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint here, config.json is missing")
    try:
        return read_config(checkpoint), read_tokenizer(checkpoint)
    except (OSError, ValueError) as error:
        reason = one_line(error, 300)
        raise ValueError(
            f"{checkpoint}: its config or tokenizer cannot be read ({reason})"
        ) from error


def head_dim(config: PreTrainedConfig) -> int:
    """Return the number of channels of an attention head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def ropes(config: PreTrainedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the RoPE parameters for full attention, and the RoPE parameters for sliding windows.

    The two results are the same if the config has one set of parameters for all layers.
    """
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    return rope.get("full_attention", rope), rope.get("sliding_attention", rope)


def end_tokens(checkpoint: Path, config: PreTrainedConfig) -> list[int]:
    """Return the ids of the tokens at which transformers' `generate` stops.

    The ids come from generation_config.json, because the config.json of a chat model may have fewer
    ids. Without a generation_config.json, the ids come from the config.
    """
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
    except OSError:  # the checkpoint has no generation_config.json
        generation = GenerationConfig.from_model_config(config)
    ends = generation.eos_token_id
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)


class Shards:
    """The files and the shapes of a checkpoint's tensors, read from the safetensors headers.

    Raises:
        ValueError: there is no safetensors file; or a file is missing, is damaged, or lacks a
            tensor that the index assigns to it.
    """

    def __init__(self, checkpoint: Path) -> None:
        try:
            shapes_by_file = check_weights(checkpoint)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error

        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file, shapes in shapes_by_file.items():
            self.files |= dict.fromkeys(shapes, file)
            self.shapes |= shapes

    def read(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor


def check_installed(kind: str, *modules: str) -> None:
    """Check that the packages for an export format are installed.

    kind: the format, which is also the name of the extra of flap that installs these packages.
    modules: the names of modules that these packages contain.

    Raises:
        ValueError: a package is missing. The message says how to install the package.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(
                f"{kind}: needs {module}, which is not installed; {how_to_install(kind)}"
            )


def check_setting(kind: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that an inference engine supports the value that a setting has in the model.

    kind: the name of the export format, which is a key of `ENGINES`.
    allowed: the values that the engine supports.

    Raises:
        ValueError: the engine does not support the value. The message lists the supported values.
    """
    allowed = list(allowed)
    if value not in allowed:
        expected = ", ".join(map(str, allowed))
        raise ValueError(
            f"{kind}: {name}={shown(value)}: {ENGINES[kind]} runs this export with {expected}"
        )
