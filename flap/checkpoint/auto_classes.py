"""Registering the pruned architectures with transformers' Auto classes by `import flap`, before or after transformers.

Registration is impossible while transformers itself is being imported, and the import of all model classes takes half a
second. So it waits for a call of `AutoConfig.from_pretrained`, which every Auto class calls first: the configs are
registered before the first one, and the models of an architecture after one that returns its pruned config.
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
    """Register the pruned architectures when AutoConfig is used, whether or not it is imported already."""
    if AUTO in sys.modules:
        _register_on_use(sys.modules[AUTO])
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register_on_use(module: ModuleType) -> None:
    """Let `AutoConfig.from_pretrained` know the pruned configs, and register the models of one that it returns."""
    original = module.AutoConfig.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        from flap.checkpoint.register import register_configs, register_models

        register_configs()
        found = original.__get__(None, cls)(*args, **kwargs)
        register_models(type(found[0] if isinstance(found, tuple) else found))  # a tuple with the unused arguments
        return found

    module.AutoConfig.from_pretrained = classmethod(from_pretrained)


class _AfterImport(MetaPathFinder):
    """An import hook that adds a step after the import of the module AUTO, which other finders find."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of AUTO with the added step; None for any other module."""
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_and_prepare(module: ModuleType) -> None:
            exec_module(module)
            _register_on_use(module)

        spec.loader.exec_module = exec_and_prepare  # type: ignore[method-assign]
        return spec
