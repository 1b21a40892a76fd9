"""Read the documents of lm-eval's tasks from the user's own files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from datasets import Dataset

from flap.config import one_line, shown
from flap.data.text_files import read_rows
from flap.evaluation.packaged_documents import give
from flap.storage import digest, parse_json

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
# `check` scores this answer to every document before a model is loaded, to find documents for which
# a task cannot score answers.
ANSWER = "An answer."


class DocumentFiles:
    """The user's file with the documents of one task, or a folder with one file for each task."""

    def __init__(self, source: str) -> None:
        """Store the option `source`, the path of the file or folder, without reading a file."""
        self.source = source
        self.where = f"source={shown(source)}"
        # the rows and the paths of the files that have been read, each under the name of its task
        self.rows: dict[str, Dataset] = {}
        self.paths: dict[str, Path] = {}

    def reader(self) -> Callable[..., None]:
        """Return a function that replaces the method by which lm-eval's tasks download data."""

        def read(task: Any, *_: Any, **__: Any) -> None:
            self._give(task)

        return read

    def check(self, name: str, task: Any) -> None:
        """Check that lm-eval can make prompts from the documents of a task, and score answers.

        Without this check, a document that lacks a value could end a run with an error after hours.

        Raises:
            ValueError: lm-eval cannot use a document, or the task does not read its documents by
                the method that `reader` replaces.
        """
        if name not in self.rows:
            raise ValueError(f"{self.where}: lm-eval reads the documents of {name} in its own way")
        for number, document in enumerate(task.eval_docs, start=1):
            try:
                task.doc_to_text(document)
                task.doc_to_target(document)
                if task.OUTPUT_TYPE == "generate_until" and callable(task.config.process_results):
                    task.process_results(document, [ANSWER])
            except Exception as error:  # the functions of a task may raise any exception
                raise ValueError(f"{self.where}: row {number}: {self.reason(error)}") from error

    def reason(self, error: Exception) -> str:
        """Return why lm-eval cannot use the documents in the file that was read last.

        error: the exception that lm-eval raised. If the exception is about a missing column, the
            returned text names this column.
        """
        name = next(reversed(self.rows), "lm-eval")
        missing = re.fullmatch(r"'(\w+)'(?: is undefined)?", str(error))
        if missing and isinstance(error, KeyError | jinja2.UndefinedError):
            return self._without_column(name, missing[1])
        return f"does not suit {name} ({type(error).__name__}: {one_line(error, 200)})"

    def origin(self, names: list[str]) -> str:
        """Return a text that says where the documents of some tasks come from.

        The text contains the name of the file or folder, the number of the documents, and a digest
        of the documents.

        names: the names of the tasks.
        """
        number = sum(len(self.rows[name]) for name in names)
        content = digest([self.rows[name].to_list() for name in names])
        return f"{Path(self.source).name}, {number} documents (sha256 {content})"

    def _give(self, task: Any) -> None:
        """Give a task of lm-eval the documents in the user's file.

        Few-shot examples are taken from these documents, too, unless the definition of the task
        contains a list of examples.
        """
        config = task.config
        path = self._path(config.task)
        rows = self._read(path)
        self.rows[config.task] = rows
        self.paths[config.task] = path

        documents = config.process_docs(rows) if config.process_docs else rows
        for template in (config.doc_to_text, config.doc_to_target, config.doc_to_choice):
            self._check_template(config.task, template, documents)

        split = config.test_split or config.validation_split or "test"
        config.test_split = split
        config.training_split = None
        config.fewshot_split = None
        if task.fewshot_cfg.samples is None:
            task.fewshot_cfg.split = split
        give(task, {split: documents})

    def _path(self, name: str) -> Path:
        path = Path(self.source)
        if path.is_file():
            others = [task for task in self.rows if task != name]
            if others:
                tasks = " and ".join([*others, name])
                raise ValueError(
                    f"{self.where}: one file holds the documents of one task, but these are "
                    f"{tasks}; name a folder with a file for each task, as {name}.jsonl"
                )
            return path
        candidates = [path / f"{name}{suffix}" for suffix in FORMATS]
        files = [file for file in candidates if file.is_file()]
        if len(files) != 1:
            found = " and ".join(file.name for file in files) or f"no file for {name}"
            raise ValueError(
                f"{self.where}: {found}; expected one of {name}.jsonl, .json, .parquet and .csv"
            )
        return files[0]

    def _read(self, path: Path) -> Dataset:
        """Return the rows of a file. A row that lacks a column gets null in this column."""
        rows = _rows(path, self.where)
        names = dict.fromkeys(name for row in rows for name in row)
        if not names:
            raise ValueError(f"{self.where}: {path.name} holds no documents")
        try:
            return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        except (TypeError, ValueError) as error:  # a column has values of different types
            reason = one_line(error, 120)
            raise ValueError(
                f"{self.where}: {path.name} is no table with one type for each column ({reason})"
            ) from error

    def _check_template(self, name: str, template: Any, documents: Dataset) -> None:
        """Check that every document has a value in each column that a template of a task reads.

        name: the name of the task. template: the name of a column, or a Jinja template. A template
            of any other type, such as a function, is not checked.
        """
        if not isinstance(template, str):
            return
        columns = documents.column_names
        if template.isidentifier():
            if template not in columns:  # lm-eval would use the name itself as the text
                raise ValueError(f"{self.where}: {self._without_column(name, template)}")
            fields = {template}
        else:
            fields = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template))
        for field in sorted(fields & {*columns}):
            values = list(documents[field])
            if None in values:
                row = values.index(None) + 1
                raise ValueError(f"{self.where}: row {row} has no {field!r}, which {name} needs")

    def _without_column(self, name: str, column: str) -> str:
        columns = ", ".join(self.rows[name].column_names)
        return f"no column {column!r}, which {name} needs, only {columns}"


def _rows(path: Path, where: str) -> list[dict[str, Any]]:
    """Return the rows of a file, each as a dict from the names of columns to values.

    where: the beginning of error messages.

    Raises:
        ValueError: the file cannot be read.
    """
    if path.suffix in (".jsonl", ".parquet"):
        rows, _ = read_rows(path, where)
        return rows
    try:
        if path.suffix == ".json":
            return _of_list(path)
        return _of_csv(path)
    except (OSError, ValueError) as error:
        expected = "a list of JSON objects" if path.suffix == ".json" else "a table in CSV"
        reason = one_line(error, 120)
        raise ValueError(f"{where}: cannot be read; expected {expected} ({reason})") from error


def _of_list(path: Path) -> list[dict[str, Any]]:
    rows = parse_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("another value")
    json.dumps(
        rows, ensure_ascii=False
    ).encode()  # raises an error if a string has a lone surrogate
    return rows


def _of_csv(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file whose first line has the names of the columns."""
    from pyarrow import csv  # imported here because importing it takes 30 MB of memory

    with_line_ends = csv.ParseOptions(newlines_in_values=True)
    rows: list[dict[str, Any]] = csv.read_csv(path, parse_options=with_line_ends).to_pylist()
    return rows
