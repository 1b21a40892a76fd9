"""What every export checks: that the packages of its format are installed, and that its engine computes a setting."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help needs this module
    from transformers import PreTrainedConfig

# Weights of a row that share a scale, by scheme of compressed-tensors; 1: any number. None needs data: weights are
# rounded to the nearest value, and the range of activations is found as the model runs.
SCHEMES = {"W8A8": 1, "FP8_DYNAMIC": 1, "W4A16": 128}
ENGINES = {"gguf": "llama.cpp", "mlx": "mlx-lm"}  # by format


def check_installed(kind: str, *modules: str) -> None:
    """Check that the packages of a format are installed, which come with the extra of its name.

    Raises:
        ValueError: one is not; says how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(f"{kind}: needs {module}, which is not installed; pip install 'flap-pruning[{kind}]'")


def check_plain(kind: str, config: "PreTrainedConfig") -> None:
    """Check that the weights of a checkpoint are not quantised yet.

    Raises:
        ValueError: they are.
    """
    if method := (getattr(config, "quantization_config", None) or {}).get("quant_method"):
        raise ValueError(f"{kind}: takes plain weights, and those of this checkpoint are {method}")


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
