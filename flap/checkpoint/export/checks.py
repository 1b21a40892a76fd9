"""What every export checks: that the packages of its format are installed, and that its engine computes a setting."""

from collections.abc import Iterable
from importlib.util import find_spec

ENGINES = {"gguf": "llama.cpp", "mlx": "mlx-lm"}  # by format


def check_installed(kind: str, *modules: str) -> None:
    """Check that the packages of a format are installed, which come with the extra of its name.

    Raises:
        ValueError: one is not; says how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(f"{kind}: needs {module}, which is not installed; pip install 'flap-pruning[{kind}]'")


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
