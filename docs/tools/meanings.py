"""Find what an option means: in a comment in its YAML file or dataclass, or in a docstring."""

import re
from dataclasses import MISSING, Field, is_dataclass
from inspect import getsource
from typing import Any


def comments(source: str, key: str) -> dict[str, str]:
    """Return a dict from the names of keys to the comments at these keys.

    source: the text of a YAML file, or the source code of a dataclass, whose fields are the keys.

    The comment of a key is in the lines above the key, or at the end of the key's line. If the
    value spans several lines, the comment may also be at the end of one of the next lines.

    key: a regular expression that matches a line with a key; its first group is the name of the
        key.
    """
    meanings: dict[str, str] = {}
    name = ""
    above: list[str] = []
    for line in source.splitlines():
        if line.lstrip().startswith("# "):
            above.append(line.strip().removeprefix("# "))
            continue
        match = re.match(key, line)
        if match:
            name = match[1]
            if above:
                meanings.setdefault(name, " ".join(above))
        above = []
        comment = line.partition("  # ")[2].strip()
        if comment and name not in meanings:
            meanings[name] = comment
    return meanings


def from_class(target: type, name: str) -> str:
    """Return the meaning of an option from its dataclass or a base class, or "" if it has none.

    name: the name of the option, which is a field of the dataclass.

    The meaning is the comment at the field, or the sentence after "name:" in the class docstring.
    """
    for base in filter(is_dataclass, target.__mro__):
        if comment := comments(getsource(base), r"    (\w+): ").get(name):
            return comment
        match = re.search(
            rf"\b{name}: (.+?)(?=\.(?:\s|$)|;\s\w+:)", " ".join((base.__doc__ or "").split())
        )
        if match:
            return match[1]
    return ""


def summary(thing: type) -> str:
    """Return the first line of a class's docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def default_of(field: Field[Any]) -> Any:
    """Return the default of a field of a dataclass, or "???" if the field has no default."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return "???" if field.default is MISSING else field.default


def type_of(field: Field[Any]) -> str:
    """Return the type of a field, such as "int or None", or "" if the field allows any type."""
    name = field.type.__name__ if type(field.type) is type else str(field.type)
    return "" if field.type is Any else name.replace(" | ", " or ")


def as_typed(value: Any) -> str:
    """Return a default as Markdown, in the form in which users write it on the command line.

    If the default is the value of another key, return "that of" and the name of this key.
    """
    if isinstance(value, str) and value.startswith("${"):
        return f"that of `{value[2:-1]}`"
    words = {"None": "null", "True": "true", "False": "false"}
    return f"`{words.get(str(value), str(value).replace(chr(39), ''))}`"
