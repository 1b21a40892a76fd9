"""FLAP: fluctuation-based adaptive structured pruning of language models (An et al., AAAI 2024, arXiv 2312.11983).

`flap.prune` prunes a model in memory, `flap.load` reads a pruned checkpoint. Importing flap stays light: torch is
loaded with the first of them, or by whoever imports transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flap.checkpoint import auto_classes

if TYPE_CHECKING:
    from flap.api import prune
    from flap.checkpoint.load import load

__all__ = ["load", "prune"]
__version__ = "0.1.0"

auto_classes.register_with_transformers()


def __getattr__(name: str) -> Any:
    modules = {"prune": "flap.api", "load": "flap.checkpoint.load"}
    if name in modules:
        return getattr(import_module(modules[name]), name)
    raise AttributeError(f"module 'flap' has no attribute '{name}'")
