"""FLAP: fluctuation-based adaptive structured pruning of large language models.

The method is by An et al., AAAI 2024, arXiv 2312.11983. `flap.prune` prunes a model in memory.
`flap.load` loads a pruned checkpoint. After a call of `flap.register()`, the Auto classes of
transformers, such as AutoModelForCausalLM, also load pruned checkpoints. `import flap` alone does
not make this change to the Auto classes, and does not import torch. torch is imported when
`flap.prune`, `flap.load` or `flap.register` is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flap.api import prune
    from flap.checkpoint.load import load
    from flap.modeling.register import register

__all__ = ["load", "prune", "register"]
__version__ = "0.1.0"

# For each public function, the module that defines it. The module is imported when the function is
# first used.
_MODULES = {
    "prune": "flap.api",
    "load": "flap.checkpoint.load",
    "register": "flap.modeling.register",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'flap' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
