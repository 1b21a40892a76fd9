"""What an export reads of a checkpoint, and checks: config, tokenizer, tensors; packages, settings of its engine."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from flap.config import how_to_install, one_line
from flap.models import read_config
from flap.models.weights import check_weights

ENGINES = {"gguf": "llama.cpp", "mlx": "mlx-lm"}  # by format


def read_checkpoint(checkpoint: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the config and the tokenizer of a checkpoint.

    Raises:
        ValueError: there is no checkpoint, its config or tokenizer cannot be read.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint here, config.json is missing")
    try:
        return read_config(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint}: its config or tokenizer cannot be read ({one_line(error, 300)})"
        ) from error


def head_dim(config: PreTrainedConfig) -> int:
    """Return the head dimension D of a model."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def ropes(config: PreTrainedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of RoPE in layers with full and in those with sliding attention."""
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    return rope.get("full_attention", rope), rope.get("sliding_attention", rope)


def end_tokens(checkpoint: Path, config: PreTrainedConfig) -> list[int]:
    """Return the ids that end a text in transformers' `generate`; the config of a chat model may name fewer."""
    try:
        ends = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    except OSError:  # there is no such file
        ends = GenerationConfig.from_model_config(config).eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


class Shards:
    """The file and the shape of each tensor of a checkpoint, from the headers of its safetensors files.

    Raises:
        ValueError: there is no file, one is damaged, or the index names a tensor that no file has.
    """

    def __init__(self, checkpoint: Path) -> None:
        try:
            by_file = check_weights(checkpoint)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
        self.files = {name: shard for shard, shapes in by_file.items() for name in shapes}
        self.shapes = {name: shape for shapes in by_file.values() for name, shape in shapes.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        with safe_open(self.files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor


def check_installed(kind: str, *modules: str) -> None:
    """Check that the packages of a format are installed, which come with the extra of its name.

    Raises:
        ValueError: one is not; says how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(
                f"{kind}: needs {module}, which is not installed; {how_to_install(kind)}"
            )


def check_setting(kind: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that the engine of a format (a key of ENGINES) computes this value of a setting.

    Raises:
        ValueError: it does not; says what it computes.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"{kind}: {name}={value}: {ENGINES[kind]} runs this export with {', '.join(map(str, allowed))}"
        )
