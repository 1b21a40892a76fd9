"""What every export does first: read the checkpoint, and look for the packages that its format needs."""

from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from flap.config import one_line
from flap.models import read_config


def read_checkpoint(checkpoint: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the config and the tokenizer of a checkpoint.

    Raises:
        ValueError: there is no checkpoint, or its config or tokenizer cannot be read.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: no checkpoint here, config.json is missing")
    try:
        return read_config(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint}: its config or tokenizer cannot be read ({one_line(error, 300)})") from error


def end_tokens(checkpoint: Path, config: PreTrainedConfig) -> list[int]:
    """Return the ids that end a text in transformers' `generate`; the config of a chat model may name fewer."""
    try:
        ends = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    except OSError:  # there is no such file
        ends = GenerationConfig.from_model_config(config).eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def check_installed(extra: str, *modules: str) -> None:
    """Check that the packages of a format are installed, which come with the extra of its name.

    Raises:
        ValueError: one is not; says how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(f"{extra}: needs {module}, which is not installed; pip install 'flap-pruning[{extra}]'")
