"""What the command line tells: its help, its log, and errors in one line with key, value and what is allowed."""

import logging
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from flap.config.schema import config_dir
from flap.config.secrets import redact

LONGEST_SHOWN = 200  # characters of a value that a message prints
CUT = " … "  # stands for the middle of a longer value
# what OmegaConf puts before the message of a function of flap/config/resolvers.py
RESOLVING = "ValueError raised while resolving interpolation: "

TEXT = """flap: a smaller language model without training, by removing attention heads and MLP neurons.

python -m flap [group=choice …] [key=value …]

{groups}

ratio=0.2      share of the decoder's Linear weights to remove; or target.memory=, bytes=, parameters=, …
dry_run=true   print what a run takes, and read no weight

Every key of a run, with its value: --cfg job.   A sweep: -m metric=IFV,WIFV ratio=0.2,0.5   A study: +experiment=NAME
Its page, or runs side by side: python -m flap study FOLDER …   A report once more: python -m flap reproduce RUN
What this machine has: python -m flap doctor"""


def names_in(group: str) -> list[str]:
    """Return the choices of a group, a folder of conf/; a name with an underscore in front is what they share."""
    return sorted(path.stem for path in (Path(config_dir()) / group).glob("[!_]*.yaml"))


def help_text() -> str:
    """Return what `--help` prints, made from conf/: Hydra takes a second for it, and copies all configs."""
    contents = (Path(config_dir()) / "config.yaml").read_text()
    groups = dict(re.findall(r"^  - (\w+): .*?# (.+)$", contents, re.MULTILINE))
    groups |= {
        "experiment": "a study with its sweep",
        "debug": "all stages in seconds, by +debug=smoke",
    }
    lines = (f"{name:<13}{text}: {', '.join(names_in(name))}" for name, text in groups.items())
    return TEXT.format(groups="\n".join(lines))


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the field, its value and what is allowed, unless `condition` is true."""
    if not condition:
        raise ValueError(f"{name}={shown(value)}: expected {allowed}")


def shown(value: Any) -> str:
    """Return a value as a message prints it: without secrets, and cut in the middle if it is long."""
    text = redact(str(value))
    if len(text) <= LONGEST_SHOWN:
        return text
    half = (LONGEST_SHOWN - len(CUT)) // 2
    return text[:half] + CUT + text[-half:]


def reason_of(error: OmegaConfBaseException) -> str:
    """Return the first line of what OmegaConf says of a value, with the value as `shown`."""
    message = str(error.msg)
    value = str(error.value)
    if value:
        message = message.replace(value, shown(value))
    return message.splitlines()[0]


def one_line(error: Exception | str, max_length: int | None = None) -> str:
    """Return the text of an error on one line, without secrets, with its long words cut in the middle.

    max_length: The most characters that the line may have. None means any number.
    """
    words = map(shown, redact(str(error)).split())
    return " ".join(words)[:max_length]


def how_to_install(extra: str) -> str:
    """Return what to write for an extra of this package, which no index has; `flap` there is another program."""
    return f"pip install '.[{extra}]' in a clone, or 'FILE.whl[{extra}]' of `make release`"


def gigabytes(num_bytes: float) -> str:
    """Return bytes in GB (10^9), with three digits."""
    return f"{num_bytes / 1e9:.3g}"


def explain(error: Exception) -> str:
    """Return one line that says why a command line does not compose: key, value and what is allowed."""
    return one_line(_explanation(error))


def _explanation(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_choice(
            error.missing_cfg_file,
            [name for name in error.options or () if not name.startswith("_")],
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        section, _, key = str(cause.full_key).rpartition(".")
        if section == "eval" and (Path(config_dir()) / "eval" / f"{key}.yaml").is_file():
            chosen = ",".join([*map(str, cause.parent_node or ()), key])
            return (
                f"{cause.full_key}: this run does not measure it; choose it with 'eval=[{chosen}]'"
            )
        allowed = sorted(str(name) for name in cause.parent_node or ())
        similar = [name for name in allowed if key.startswith(name)] or get_close_matches(
            key, allowed, n=1
        )
        hint = f"did you mean {similar[0]}? " if similar else ""
        line = f"{cause.full_key}: unknown key; {hint}{section or 'the config'} has {', '.join(allowed) or 'no keys'}"
        if any(
            f"\n{key}:" in path.read_text()
            for path in (Path(config_dir()) / section).glob("*.yaml")
            if section
        ):
            line += f"; other choices of {section} have it: where it is swept, write '{cause.full_key}=choice(…)'"
        return line
    if isinstance(cause, InterpolationResolutionError) and str(cause.msg).startswith(RESOLVING):
        return str(cause.msg).splitlines()[0].removeprefix(RESOLVING)
    if isinstance(cause, OmegaConfBaseException):
        line = f"{cause.full_key}: {reason_of(cause)}"
        if line.startswith("ratio: Value '"):
            line += as_share(cause.value)
        return line
    return _of_words(str(error)) or shown(one_line(error))


def as_share(percent: Any) -> str:
    """Return what to write for a ratio in per cent; empty for what is none."""
    number = re.fullmatch(r"(\d+(\.\d+)?) ?%?", str(percent))
    value = float(number[1]) if number else 0.0
    return f"; {value:g} % is ratio={value / 100:g}" if 1 < value < 100 else ""


def _no_choice(file: str, options: list[str]) -> str:
    """Return what is said of a choice that its group does not have. file: "metric/wifv"."""
    group, _, name = file.partition("/") if file.startswith("model/") else file.rpartition("/")
    names = options or names_in(group)
    lower = {one.lower(): one for one in names}
    hint = "".join(
        f"did you mean {lower[one]}? " for one in get_close_matches(name.lower(), lower, n=1)
    )
    path = ""
    if group == "model":
        path = f"; a model of the hub or of a directory is model.path={shown(name)}"
    return f"{group}={shown(name)}: {hint}expected one of {', '.join(names)}{path}"


def _of_words(text: str) -> str:
    """Return what to write instead of words that Hydra does not read; empty where it says so itself."""
    if "group override must be" in text:
        return "a group takes the name of one of its options, as --help lists them, and not null or a number"
    if several := re.match(r"Ambiguous value for argument '(.*?)=(.*)'", text):
        key, values = several.groups()
        values = shown(values)
        return f"{key}={values}: several values; write '{key}=[{values}]' for all in one run, or -m for a run of each"
    if tilde := re.search(r"([\w.]+)=(~\S*)", text):
        key, path = tilde.groups()
        expanded = shown(Path(path).expanduser())
        return f"{key}={shown(path)}: no shell replaces ~ here; write {key}={expanded}"
    if text.startswith("Only one of --run, --multirun, --cfg"):
        return (
            "--cfg: leave out -m; of one cell, as 'python -m flap hydra/launcher=slurm --cfg hydra'"
        )
    return ""


class ConsoleFormatter(logging.Formatter):
    """A formatter that prints one line for each record; tracebacks go only to the log file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, after its level if that is a warning or worse."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"
