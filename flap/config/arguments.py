"""Check the arguments of a command line before Hydra reads them, and explain mistakes."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from flap.config.messages import ADDED, MEASUREMENTS, groups, shown
from flap.config.schema import FlapConfig

FLAGS = {
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "--resolve",
    "-r",
    "--run",
    "-m",
    "--multirun",
}
CONFIG_DIR = ("--config-dir", "-cd")
# The options of Hydra that take a value, as in "--config-dir=conf" or "--config-dir conf".
VALUED = {
    *CONFIG_DIR,
    "-c",
    "--cfg",
    "-p",
    "--package",
    "-cp",
    "--config-path",
    "-cn",
    "--config-name",
    "--experimental-rerun",
    "-i",
    "--info",
}
COMPLETION = {"-sc", "--shell-completion"}
OPENING = "[{("
CLOSING = "]})"


def check_arguments(arguments: Sequence[str], commands: Iterable[str] = ()) -> None:
    """Check that each argument is an option of Hydra or has the form `key=value` or `~key`.

    commands: the names of flap's subcommands, such as `doctor`. If the first argument is a
        misspelled subcommand, the error message suggests the right spelling.

    Raises:
        ValueError: an argument has none of these forms, a list contains unquoted spaces, or a list
            is given to a config group that takes a single choice. The message says what to type
            instead.
    """
    if COMPLETION & {*arguments}:
        return
    if arguments:
        _refuse_misspelled_command(arguments[0], commands)
    for number, word in enumerate(arguments):
        if number > 0 and arguments[number - 1] in VALUED:
            continue
        following = arguments[number + 1 :]
        if word.startswith("-"):
            _refuse_unknown_option(word, following)
        elif "=" in word:
            _check_override(word, following)
        elif not word.startswith("~"):
            _refuse_missing_value(word, following)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's options, such as `-m`, moved in front of the overrides.

    Hydra cannot parse overrides on both sides of an option. For example, it cannot parse the
    command line `seed=1 -m ratio=0.2,0.3`.
    """
    options = list[str]()
    others = list[str]()
    before = ""
    for word in arguments:
        if word.startswith("-") or before in VALUED:
            options.append(word)
        else:
            others.append(word)
        before = word
    return [*options, *others]


def with_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line, with `--resolve` added if they contain `--cfg job`.

    With `--resolve`, Hydra prints values in place of interpolations such as `${seed}`.
    """
    pairs = [*pairwise(arguments)]
    asks = "--cfg=job" in arguments or ("--cfg", "job") in pairs or ("-c", "job") in pairs
    return ["--resolve", *arguments] if asks else list(arguments)


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that the arguments give with Hydra's option `--config-dir` (`-cd`)."""
    folders = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in CONFIG_DIR:
            folders.append(Path(value or following))
    return folders


def _refuse_unknown_option(word: str, following: Sequence[str]) -> None:
    option, _, value = word.partition("=")
    options = FLAGS | VALUED
    is_short_for_one = len(option) > 2 and any(one.startswith(option) for one in options)
    if option in options or is_short_for_one:
        return
    if not value and following and "=" not in following[0]:
        value = following[0]
    key = option.lstrip("-")
    if key and value:
        raise ValueError(f"{shown(word)}: write {shown(f'{key}={value}')}")
    raise ValueError(
        f"{shown(word)}: unknown option; write key=value, such as ratio=0.2 (--help lists the keys)"
    )


def _refuse_misspelled_command(word: str, commands: Iterable[str]) -> None:
    if "=" in word:
        return
    for similar in get_close_matches(word.lower(), commands, n=1):
        raise ValueError(f"{shown(word)}: unknown command; did you mean {similar}?")


def _refuse_missing_value(word: str, following: Sequence[str]) -> None:
    key = word.partition(".")[0]
    keys = {*FlapConfig.__dataclass_fields__, *ADDED, "hydra"}
    if key in keys and following and "=" not in following[0]:
        instead = f"{word}={following[0]}"
        raise ValueError(f"{shown(f'{word} {following[0]}')}: write {shown(instead)}")
    raise ValueError(
        f"{shown(word)}: expected key=value without spaces, such as ratio=0.2 "
        "(--help lists the keys)"
    )


def _check_override(word: str, following: Sequence[str]) -> None:
    """Raise an error if a list contains unquoted spaces, or is given to a single-choice group.

    word: an override, such as "ratio=0.2". following: the arguments after `word`.
    """
    key, _, value = word.partition("=")
    whole = _closed(value, following)
    if whole != value:
        without_spaces = re.sub(r" ?([,:]) ?", r"\1", whole)
        quoted = f"'{key}={without_spaces}'"
        raise ValueError(
            f"{shown(f'{key}={whole}')}: quote the list, or remove the spaces: {shown(quoted)}"
        )
    group = key.lstrip("+")
    if value.startswith("[") and group in groups() and group != MEASUREMENTS:
        names = ",".join(_names(value))
        instead = f"write {group}={names}"
        if "," in names:
            instead = f"for a run of each, write -m {group}={names}"
        if group == "calibration":
            instead += f"; for other texts, write 'calibration.dataset=[{names}]'"
        raise ValueError(f"{shown(word)}: expected one name and no list; {instead}")


def _closed(value: str, following: Sequence[str]) -> str:
    """Return a list as the user has typed it, joined from the pieces that the shell has made of it.

    A shell splits an unquoted list at its spaces, as in `ratio=[0.1, 0.2]` or `ratio=0.1, 0.2`. The
    pieces are the arguments up to the closing bracket, or, without brackets, the arguments before
    and after commas. If a bracket is never closed, return `value` alone.

    value: the first piece. following: the arguments after the first piece.
    """
    whole = value
    for word in following:
        is_argument = "=" in word or word.startswith(("-", "~"))
        beside_comma = whole.endswith(",") or word.startswith(",")
        if _open_brackets(whole) <= 0 and (is_argument or not beside_comma):
            break
        whole += f" {word}"
    return whole if _open_brackets(whole) == 0 else value


def _open_brackets(text: str) -> int:
    opened = sum(text.count(bracket) for bracket in OPENING)
    return opened - sum(text.count(bracket) for bracket in CLOSING)


def _names(value: str) -> Iterator[str]:
    """Yield the names in one list, such as "[a,b]", or in several lists, such as "[a],[b,c]"."""
    for name in value.split(","):
        stripped = name.strip("[] \"'")
        if stripped:
            yield stripped
