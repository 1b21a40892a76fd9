"""FLAP: fluctuation-based adaptive structured pruning of language models (An et al., AAAI 2024, arXiv 2312.11983).

`flap.prune` prunes a model in memory, `flap.load` reads a pruned checkpoint, and after `flap.register()` transformers'
Auto classes read one, too. Importing flap changes nothing and stays light: torch is loaded with the first use of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flap.api import prune
    from flap.checkpoint.load import load
    from flap.modeling.register import register

__all__ = ["load", "prune", "register"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    modules = {
        "prune": "flap.api",
        "load": "flap.checkpoint.load",
        "register": "flap.modeling.register",
    }
    if name in modules:
        return getattr(import_module(modules[name]), name)
    raise AttributeError(f"module 'flap' has no attribute '{name}'")
