"""The help, the error messages and the log lines that flap prints in the terminal."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from omegaconf.errors import OmegaConfBaseException

from flap.config.schema import config_dir
from flap.config.secrets import redact

LONGEST_SHOWN = 200  # maximum number of characters of a value in a message
CUT = " … "  # replaces the middle of a value with more than LONGEST_SHOWN characters
# For most config groups, a run has one choice, and config.yaml sets the default choice. There are
# two exceptions: `eval` takes a list of choices, and the groups in ADDED are not in config.yaml,
# but are added with + on the command line.
MEASUREMENTS = "eval"
ADDED = {
    "experiment": "a study with its sweep, by +experiment=NAME",
    "debug": "all stages in seconds, by +debug=smoke",
}

TEXT = """flap: a smaller language model without training, by removing attention heads and MLP neurons.

python -m flap [group=choice …] [key=value …]

{groups}

ratio=0.2      share of the decoder's Linear weights to remove; or a size: target.bytes=200e6, target.memory=…
model.path=…   a model that is not in the list: a directory, an id of the hub, or a GGUF file
dry_run=true   print what the run needs, without reading weights

python -m flap -m metric=IFV,WIFV ratio=0.2,0.5   run a sweep: every combination of these values
python -m flap +experiment=NAME                   run a study
python -m flap --cfg job                          print every key of a run with its value
python -m flap --cfg job -p calibration           print the keys of one group
python -m flap study FOLDER …                     write the page of a sweep, or show runs side by side
python -m flap export CHECKPOINT ENGINE           write a checkpoint for gguf (llama.cpp), mlx, onnx or openvino
python -m flap reproduce RUN                      run a report again and compare the numbers
python -m flap workspace ENTITY/PROJECT FOLDER    save a workspace for a sweep in W&B
python -m flap doctor                             check this machine
python -m flap export --help                      print the options of a command, here of export"""  # noqa: E501


def names_in(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """Return the names of a config group's choices. Each choice is a YAML file in conf/.

    A file whose name begins with an underscore is not a choice, but contains options that several
    choices of the group share.

    folders: the user's own config folders, whose choices are returned as well.
    """
    names = set[str]()
    for folder in (Path(config_dir()), *folders):
        names |= {path.stem for path in (folder / group).glob("[!_]*.yaml")}
    return sorted(names)


def groups() -> dict[str, str]:
    """Return a dict from each config group to a description of the group.

    The groups are those in the list `defaults` of conf/config.yaml. The description is the comment
    behind the group in this list.
    """
    contents = (Path(config_dir()) / "config.yaml").read_text()
    return dict(re.findall(r"^  - (\w+): .*?# (.+)$", contents, re.MULTILINE))


def help_text(folders: Sequence[Path] = ()) -> str:
    """Return the text of `--help`, which lists the choices of each config group.

    The choices are found without Hydra, which would take a second to start.

    folders: the user's own config folders, whose choices are listed as well.
    """
    lines = []
    for group, meaning in (groups() | ADDED).items():
        lines.append(f"{group:<13}{meaning}: {', '.join(names_in(group, folders))}")
    return TEXT.format(groups="\n".join(lines))


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError unless `condition` is true.

    The message is "NAME=VALUE: expected ALLOWED", where the words in capitals stand for the
    arguments `name`, `value` and `allowed`.
    """
    if not condition:
        raise ValueError(f"{name}={shown(value)}: expected {allowed}")


def require_counts(options: object, section: str, **least: int) -> None:
    """Raise a ValueError if one of the options in `least` is below its minimum.

    Options whose default is None may also have the value None.

    options: the object that has the options as attributes.
    section: the config section of the options, for the message.
    least: the names of the options to check, each with the minimum of the option.
    """
    for name, minimum in least.items():
        value = getattr(options, name)
        allowed = f"a whole number >= {minimum}"
        if getattr(type(options), name, minimum) is None:  # the default of the option is None
            allowed = f"null or {allowed}"
        require(value is None or value >= minimum, f"{section}.{name}", value, allowed)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint with the most similar of the given names, such as "did you mean wikitext2? ".

    The most similar name is the first name that begins with `name`. If there is none, it is the
    name with the most similar spelling. Upper and lower case count as equal. If no name is similar,
    return an empty string.
    """
    lower = {one.lower(): one for one in names}
    similar = [one for one in lower if name and one.startswith(name.lower())]
    similar = similar or get_close_matches(name.lower(), lower, n=1)
    return f"did you mean {lower[similar[0]]}? " if similar else ""


def shown(value: Any) -> str:
    """Format a value for a message, without secrets. The middle of a long value is cut out."""
    text = redact(str(value))
    if len(text) <= LONGEST_SHOWN:
        return text
    half = (LONGEST_SHOWN - len(CUT)) // 2
    return text[:half] + CUT + text[-half:]


def reason_of(error: OmegaConfBaseException) -> str:
    """Return the first line of an OmegaConf error, with the refused value formatted by `shown`."""
    message = str(error.msg or error)
    value = str(error.value)
    if value:
        message = message.replace(value, shown(value))
    return message.splitlines()[0]


def one_line(error: Exception | str, max_length: int | None = None) -> str:
    """Return the text of an error on one line, without secrets.

    The middle of each word with more than LONGEST_SHOWN characters is cut out.

    max_length: the maximum number of characters of the line. None means no limit.
    """
    words = map(shown, redact(str(error)).split())
    return " ".join(words)[:max_length]


def how_to_install(extra: str) -> str:
    """Return a text that says how to install an extra (a group of optional packages) of flap.

    flap itself is not on PyPI: the package `flap` on PyPI is a different program.
    """
    return f"pip install '.[{extra}]' in a clone, or 'FILE.whl[{extra}]' of `make release`"


def gigabytes(num_bytes: float) -> str:
    """Format a number of bytes in GB (10^9 bytes), with three significant digits."""
    return f"{num_bytes / 1e9:.3g}"


class ConsoleFormatter(logging.Formatter):
    """A log formatter for the console, which leaves out tracebacks. The log file contains them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record. The level is put in front of warnings and errors."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"


class ConsoleFilter(logging.Filter):
    """A log filter for the console.

    The filter drops records with the attribute `only_in_files`, which are only for the log file. It
    also drops warnings that the console has already shown, because each run of a sweep gives the
    same warnings.
    """

    shown: ClassVar[set[str]] = set()  # the warnings that the console has shown so far

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "only_in_files", False):
            return False
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        is_new = message not in self.shown
        self.shown.add(message)
        return is_new


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Log to the console and to a file for the duration of the `with` block.

    Use this function where Hydra does not configure the log. Records are filtered and formatted as
    in conf/hydra/job_logging/flap.yaml, which configures the log of runs that Hydra starts. The
    file is created when its first line is written.
    """
    console = logging.StreamHandler()
    console.setFormatter(ConsoleFormatter())
    console.addFilter(ConsoleFilter())
    log_file = logging.FileHandler(file, encoding="utf-8", delay=True)
    log_file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    root = logging.getLogger()
    levels = {root: logging.INFO}
    for chatty in ("matplotlib", "httpx"):
        levels[logging.getLogger(chatty)] = logging.WARNING
    before = {logger: logger.level for logger in levels}

    for logger, level in levels.items():
        logger.setLevel(level)
    for handler in (console, log_file):
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in (console, log_file):
            root.removeHandler(handler)
            handler.close()
        for logger, level in before.items():
            logger.setLevel(level)
