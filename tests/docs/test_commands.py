"""Every command line in the documentation consists of options that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flap.cli import SUBCOMMANDS
from tests.docs.conftest import ROOT
from tests.docs.test_sources import FILES
from tests.helpers.runs import composed

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# This expression matches a command in a cell of a Markdown table.
CELL = re.compile(r"^\|.*`(python -m flap [^`…]*)`", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:OMP_NUM_THREADS=1 )?(?:python -m )?flap (.*)$", re.MULTILINE)


def commands(file: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command in the code blocks and tables of a page.

    A backslash at the end of a line continues the command on the next line. Commands with a
    subcommand, such as `flap study`, are left out.
    """
    cells = CELL.findall(file.read_text()) if file.parent.name == "docs" else []
    for block in [*BLOCK.findall(file.read_text()), *cells]:
        for line in COMMAND.findall(block.replace("\\\n", " ")):
            words = [word for word in shlex.split(line, comments=True) if word != "…"]
            if words and words[0] not in SUBCOMMANDS:
                yield words


COMMANDS = {
    (str(file.relative_to(ROOT)), shlex.join(words)): words
    for file in FILES
    for words in commands(file)
}


def single(word: str) -> str:
    """Return an override for a single run.

    If the override has several values for a sweep, keep only the first value.
    """
    [override] = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        return word
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


@pytest.mark.long
@pytest.mark.parametrize(
    "words", COMMANDS.values(), ids=[f"{file}: {line}" for file, line in COMMANDS]
)
def test_a_command_is_of_options_that_exist(words: list[str]) -> None:
    overrides = [single(word) for word in words if not word.startswith("-")]
    assert composed(*overrides).model.name


def test_brackets_are_quoted_because_zsh_reads_them() -> None:
    blocks = [
        block for file in FILES for block in BLOCK.findall(file.read_text()) if "-m flap" in block
    ]
    assert [
        found for block in blocks for found in re.findall(r"(?<=\s)[\w.+/~]+=[\[{]\S*", block)
    ] == []


def test_there_are_commands_in_the_readme_and_in_the_documentation() -> None:
    assert {"README.md", "docs/clusters.md", "docs/prune.md"} <= {file for file, _ in COMMANDS}
