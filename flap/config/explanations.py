"""Explain in one line why Hydra cannot compose a config from a command line.

The line names the key and its value, and says what is wrong and what to type instead.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from flap.config.messages import (
    MEASUREMENTS,
    did_you_mean,
    names_in,
    one_line,
    reason_of,
    shown,
)
from flap.config.schema import config_dir

# OmegaConf puts this text in front of the message of a ValueError that a resolver (a function in
# flap/config/resolvers.py) has raised.
RESOLVING = "ValueError raised while resolving interpolation: "
TAKES_LIST = re.compile(
    r"eval|(calibration|recover|vocabulary)\.dataset|eval\.\w+\.(datasets|tasks|seq_len)"
)
# For each letter in a size, its exponent of ten: 200MB is 200 * 10^6, and 7B is 7 * 10^9.
POWERS = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
TEXT_FILES = (".txt", ".jsonl", ".parquet")


def explain(error: Exception) -> str:
    """Return one line that says why Hydra cannot compose a config from a command line."""
    return one_line(_explanation(error))


def as_share(percent: Any) -> str:
    """Return a hint such as "; 20 % is ratio=0.2" for a ratio that the user gave in per cent.

    Return an empty string if `percent` is not a number between 1 and 100, with or without %.
    """
    number = re.fullmatch(r"(\d+(\.\d+)?) ?%?", str(percent))
    value = float(number[1]) if number else 0.0
    return f"; {value:g} % is ratio={value / 100:g}" if 1 < value < 100 else ""


def _without_unit(key: str, value: str) -> str:
    """Return a size without its unit, such as "200e6" for "200MB" and "7e9" for "7B".

    Return an empty string if `value` is not a size with a unit.

    key: the config key that the size was given for. The unit B means a billion (10^9) only in keys
        that end with "parameters".
    """
    letters = "kmgtb" if key.endswith("parameters") else "kmgt"
    size = re.fullmatch(rf"(\d+(?:\.\d+)?) ?([{letters}])(i?)b?", value, re.IGNORECASE)
    if size is None:
        return ""
    number, letter, binary = size.groups()
    power = POWERS[letter.lower()]
    if binary:  # for example MiB, which is 1024 * 1024 bytes
        return f"{float(number) * 1024 ** (power // 3):.0f}"
    return f"{number}e{power}"


def _explanation(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        options = [name for name in error.options or () if not name.startswith("_")]
        return _unknown_choice(error.missing_cfg_file, options)

    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(cause)
    if isinstance(cause, InterpolationResolutionError):
        message = str(cause.msg or cause).splitlines()[0]
        if message.startswith(RESOLVING):
            return message.removeprefix(RESOLVING)
    if isinstance(cause, OmegaConfBaseException):
        number = _without_unit(str(cause.full_key), str(cause.value))
        if str(cause.full_key).startswith("target.") and number:
            instead = f"write {cause.full_key}={number}"
            return f"{cause.full_key}={cause.value}: expected a number without a unit; {instead}"
        key = f"{cause.full_key}: " if cause.full_key else ""
        line = f"{key}{reason_of(cause)}"
        if line.startswith("ratio: Value '"):
            line += as_share(cause.value)
        return line
    return _unreadable(error) or shown(one_line(error))


def _unknown_choice(file: str, options: list[str]) -> str:
    """Return the error message for a choice that does not exist in its config group.

    The message lists the choices of the group, and suggests a choice with a similar name.

    file: the group and the choice, as Hydra's error names them, such as "metric/wifv".
    """
    group, _, name = file.partition("/") if file.startswith("model/") else file.rpartition("/")
    names = options or names_in(group)
    hint = did_you_mean(name, names)
    expected = f"{hint}expected one of {', '.join(names)}{_elsewhere(group, name)}"
    return f"{group}={shown(name)}: {expected}"


def _elsewhere(group: str, name: str) -> str:
    """Return the end of the error message for an unknown choice, which suggests another key.

    For example, if a model is not in the group `model`, suggest `model.path`, which takes any model
    on the hub. If there is no other key for the group, return an empty string.
    """
    name = shown(name)
    if group == "model":
        return f"; a model of the hub or of a directory is model.path={name}"
    if group == "calibration":
        return f"; for another text or a file use calibration.dataset={name}"
    if group == MEASUREMENTS and name.endswith(TEXT_FILES):
        text = f"'eval.perplexity.datasets=[{name}]' for a text"
        prompts = f"'eval=[generation]' 'eval.generation.tasks=[{name}]' for prompts with answers"
        return f"; use {text}, or {prompts}"
    return ""


def _unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    section, _, key = str(error.full_key).rpartition(".")
    keys = [str(name) for name in error.parent_node or ()]
    if section == MEASUREMENTS and key in names_in(section):
        chosen = ",".join([*keys, key])
        return f"{error.full_key}: this run does not measure it; choose it with 'eval=[{chosen}]'"

    keys.sort()
    similar = [name for name in keys if key.startswith(name)]
    similar = similar or get_close_matches(key, keys, n=1)
    places = [] if section else _sections_with(key, error.parent_node or ())
    if places:
        return f"{key}: unknown key; did you mean {' or '.join(places)}?"
    if similar and not section:  # the top level has too many keys to list in a line
        return f"{error.full_key}: unknown key; did you mean {similar[0]}?"
    hint = f"did you mean {similar[0]}? " if similar else ""
    has = f"{section or 'the config'} has {', '.join(keys) or 'no keys'}"
    line = f"{error.full_key}: unknown key; {hint}{has}"
    if section and _any_choice_has_key(section, key):
        sweep = f"where it is swept, write '{error.full_key}=choice(…)'"
        line += f"; other choices of {section} have it: {sweep}"
    return line


def _sections_with(key: str, node: Any, prefix: str = "") -> list[str]:
    """Return the full names of a key in all sections that have it, such as ["target.context"].

    node: a section or the whole config. Only the sections inside `node` are searched, and not the
        keys of `node` itself.
    prefix: the full name of `node` and a dot; empty for the whole config.
    """
    places = []
    for name in node:
        section = node._get_node(name)
        if name == "hydra" or not isinstance(section, DictConfig) or section._is_none():
            continue
        if key in section:
            places.append(f"{prefix}{name}.{key}")
        places += _sections_with(key, section, f"{prefix}{name}.")
    return places


def _any_choice_has_key(group: str, key: str) -> bool:
    files = (Path(config_dir()) / group).glob("*.yaml")
    return any(f"\n{key}:" in path.read_text() for path in files)


def _unreadable(error: Exception) -> str:
    """Return a message that says what to write instead of an argument that Hydra cannot parse.

    If the error has another cause, return an empty string. `explain` then returns Hydra's message.
    """
    text = str(error)
    if "group override must be" in text:
        return (
            "a group takes the name of one of its options, as --help lists them, "
            "and not null or a number"
        )
    several = re.match(r"Ambiguous value for argument '(.*?)=(.*)'", text)
    if several:
        return _several_values(*several.groups())
    tilde = re.search(r"([\w.]+)=(~\S*)", text)
    if tilde:
        key, path = tilde.groups()
        expanded = shown(Path(path).expanduser())
        return f"{key}={shown(path)}: no shell replaces ~ here; write {key}={expanded}"
    added = re.match(r"Could not override '(.+?)'.*use (\+\S+)", text, re.DOTALL)
    if added:
        word = added[2]
        return f"{shown(word[1:])}: write {shown(word)}"
    if text.startswith("Only one of --run, --multirun, --cfg"):
        return (
            "--cfg: leave out -m; of one cell, as 'python -m flap hydra/launcher=slurm --cfg hydra'"
        )
    if isinstance(error, OverrideParseException):
        reason = one_line(text.splitlines()[0])
        quoted = "quote a value with special characters twice, as \"run_name='a(b)'\""
        return f"{shown(error.override)}: Hydra cannot read it ({shown(reason)}); {quoted}"
    return ""


def _several_values(key: str, values: str) -> str:
    word = f"{key}={shown(values)}"
    line = f"{word}: several values; for a run of each, write -m {word}"
    if TAKES_LIST.fullmatch(key):
        line += f"; for all in one run, write '{key}=[{shown(values)}]'"
    return line
