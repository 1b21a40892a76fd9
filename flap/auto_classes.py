"""`import flap` is enough for transformers' Auto classes to load pruned checkpoints, whichever is imported first.

Registering needs transformers' model classes: seconds that `python -m flap --help` must not pay, and an import that
cannot be made in the middle of transformers' own. So it waits for the first `AutoConfig.from_pretrained`, which every
Auto class calls before anything else.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.configuration_auto"


def register_with_transformers() -> None:
    """Register the pruned architectures at the first use of AutoConfig, now or whenever it will be imported."""
    if AUTO in sys.modules:
        _register_on_first_use(sys.modules[AUTO])
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register_on_first_use(module: ModuleType) -> None:
    auto_config = module.AutoConfig
    original = auto_config.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        from flap.checkpoint.register import register

        auto_config.from_pretrained = original
        register()
        return original.__get__(None, cls)(*args, **kwargs)

    auto_config.from_pretrained = classmethod(from_pretrained)


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

        def run_and_prepare(module: ModuleType) -> None:
            run(module)
            _register_on_first_use(module)

        spec.loader.exec_module = run_and_prepare  # type: ignore[method-assign]
        return spec
