"""Create objects from choices of config groups. The `_target_` of a choice names a dataclass."""

import os
import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from importlib import import_module
from inspect import isabstract
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config.messages import one_line, reason_of, shown


def build(group: str, node: Any, base: type, *others: type) -> Any:
    """Create the object that the choice of a config group describes.

    group: the name of the config group, for error messages.
    node: the choice, as a dict with the key `_target_` and the options of the object. `node` may
        also be the object itself. Then a new object with the same options is returned, so that each
        run begins with a random generator in its initial state.
    base, others: the allowed base classes; the class in `_target_` must derive from at least one of
        them.

    Raises:
        ValueError: `node` is neither a dict with the key `_target_` nor an object of an allowed
            class, the class in `_target_` does not derive from an allowed base class, or an option
            is unknown, of the wrong type, or out of range.
    """
    bases = (base, *others)
    if is_dataclass(node) and not isinstance(node, type) and isinstance(node, bases):
        return replace(node)
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(
            f"{group}={shown(node)}: expected one of the names that --help lists for this group"
        )
    schema = OmegaConf.structured(_choice_class(f"{group}._target_", node["_target_"], bases))
    options = {key: value for key, value in node.items() if key != "_target_"}
    try:
        # The interpolations in the options have already been resolved, so any "${" that is left is
        # ordinary text and must stay as it is.
        return OmegaConf.to_object(OmegaConf.merge(schema, literal(options)))
    except OmegaConfBaseException as error:
        value = options.get(error.full_key)
        expected = reason_of(error)
        if "ListConfig" in expected and isinstance(value, list):
            expected = "expected one value"
        elif "ListConfig" in expected:
            expected = f"expected a list; write '{group}.{error.full_key}=[{shown(value)}]'"
        raise ValueError(f"{group}.{error.full_key}={shown(value)}: {expected}") from error


def _choice_class(field: str, name: Any, bases: tuple[type, ...]) -> type:
    """Import the class that a choice names, and check the class.

    The class must be a dataclass that derives from one of `bases` and has no abstract methods.

    field: the config key that contains `name`, such as "metric._target_", for error messages.
    name: the module and the name of the class, such as "flap.method.importance.WIFV".
    """
    parents = " or ".join(f"{base.__module__}.{base.__name__}" for base in bases)
    expected = (
        f"{field}={shown(name)}: expected the name of a dataclass that derives from {parents}"
    )
    module, _, attribute = str(name).rpartition(".")
    try:
        chosen = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{expected}; it cannot be imported ({one_line(error, 200)})") from error
    if not isinstance(chosen, type) or not issubclass(chosen, bases) or not is_dataclass(chosen):
        raise ValueError(expected)
    if isabstract(chosen):
        raise ValueError(
            f"{expected}; this one lacks {', '.join(sorted(chosen.__abstractmethods__))}"
        )
    return chosen


def literal(value: Any) -> Any:
    """Escape "${" in all strings of a value, because OmegaConf would read it as an interpolation.

    Numbers and bools stay as they are. Scalars of numpy and torch become Python numbers and bools.

    value: a string, a number, a bool, or nested lists and dicts of these.
    """
    if isinstance(value, str | os.PathLike):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", os.fspath(value))
    if isinstance(value, Mapping):
        return {str(key): literal(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [literal(one) for one in value]
    return value.item() if hasattr(value, "item") else value
