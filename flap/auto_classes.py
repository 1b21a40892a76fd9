"""`import flap` is enough for transformers' Auto classes to load pruned checkpoints, whichever is imported first.

Registering needs transformers' model classes, seconds of import that `python -m flap --help` must not pay. So it
happens now where transformers is loaded already, else right after its Auto classes are.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register the pruned architectures, now or once the Auto classes are imported."""
    if AUTO in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    from flap.checkpoint.register import register

    register()


class _AfterImport(MetaPathFinder):
    """Finds nothing itself: lets the import system find the module, and adds one step to its execution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
