"""What the command line tells: its help, its log, and errors in one line with key, value and what is allowed."""

import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from flap.config.schema import config_dir

TEXT = """flap: a smaller language model without training, by removing attention heads and MLP neurons.

python -m flap [group=choice …] [key=value …]

{groups}

ratio=0.2      share of the decoder's Linear weights to remove; or target.bytes=, parameters= or kv_cache_bytes=
dry_run=true   print what a run takes, and read no weight

Every key of a run, with its value: --cfg job.   A sweep: -m metric=IFV,WIFV ratio=0.2,0.5   A study: +experiment=NAME
Its page, or runs side by side: python -m flap.study FOLDER …   What this machine has: python -m flap doctor"""


def names_in(group: str) -> list[str]:
    """Return the choices of a group, a folder of conf/; a name with an underscore in front is what they share."""
    return sorted(path.stem for path in (Path(config_dir()) / group).glob("[!_]*.yaml"))


def help_text() -> str:
    """Return what `--help` prints, made from conf/: Hydra takes a second for it, and copies all configs."""
    contents = (Path(config_dir()) / "config.yaml").read_text()
    groups = dict(re.findall(r"^  - (\w+): .*?# (.+)$", contents, re.MULTILINE))
    groups["experiment"] = "a study with its sweep"
    lines = (f"{name:<13}{text}: {', '.join(names_in(name))}" for name, text in groups.items())
    return TEXT.format(groups="\n".join(lines))


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the field, its value and what is allowed, unless `condition` is true."""
    if not condition:
        raise ValueError(f"{name}={value}: expected {allowed}")


def one_line(error: Exception, max_length: int | None = None) -> str:
    """Return an error's text on one line, cut to at most `max_length` characters; None: not cut."""
    return " ".join(str(error).split())[:max_length]


def how_to_install(extra: str) -> str:
    """Return what to write for an extra of this package, which no index has; `flap` there is another program."""
    return f"pip install '.[{extra}]' in a clone, or 'FILE.whl[{extra}]' of `make release`"


def gigabytes(num_bytes: float) -> str:
    """Return bytes in GB (10^9), with three digits."""
    return f"{num_bytes / 1e9:.3g}"


def without_credentials(value: Any) -> Any:
    """Return plain data, the URLs in it without user and password."""
    if isinstance(value, str):
        return re.sub(r"(\w+://)[^/@\s]+@", r"\1", value)
    if isinstance(value, Mapping):
        return {key: without_credentials(one) for key, one in value.items()}
    return [without_credentials(one) for one in value] if isinstance(value, list | tuple) else value


def explain(error: Exception) -> str:
    """Return one line that says why a command line does not compose: key, value and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        names = [option for option in error.options or names_in(group) if not option.startswith("_")]
        return f"{group}={name}: expected one of {', '.join(names)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        section, _, key = str(cause.full_key).rpartition(".")
        if section == "eval" and (Path(config_dir()) / "eval" / f"{key}.yaml").is_file():
            chosen = ",".join([*map(str, cause.parent_node or ()), key])
            return f"{cause.full_key}: this run does not measure it; choose it with 'eval=[{chosen}]'"
        allowed = sorted(str(name) for name in cause.parent_node or ())
        similar = get_close_matches(key, allowed, n=1)
        hint = f"did you mean {similar[0]}? " if similar else ""
        line = f"{cause.full_key}: unknown key; {hint}{section or 'the config'} has {', '.join(allowed) or 'no keys'}"
        if any(f"\n{key}:" in path.read_text() for path in (Path(config_dir()) / section).glob("*.yaml") if section):
            line += f"; other choices of {section} have it: where it is swept, write '{cause.full_key}=choice(…)'"
        return line
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {cause.msg}".splitlines()[0]
    if "group override must be" in str(error):
        return "a group takes the name of one of its options, as --help lists them, and not null or a number"
    return one_line(error)


class ConsoleFormatter(logging.Formatter):
    """A formatter that prints one line for each record; tracebacks go only to the log file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, after its level if that is a warning or worse."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"
