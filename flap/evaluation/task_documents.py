"""The documents of a loaded task: how they are recognised, and the task without some of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset

from flap.data import Prompt
from flap.data.overlap import OVERLAP, Document, document_of, letters_and_digits, turns
from flap.evaluation.zero_shot_tasks import LoadedTask, examples_are_documents
from flap.runtime.agenda import Workload

LONGEST = 256  # tokens of an answer, where the task does not say; this is lm-eval's
# For estimates of time.
SAMPLE = 20  # documents of a task
CHARACTERS_PER_TOKEN = 4
SHARE_WRITTEN = 0.5  # of the longest answer, as most answers end earlier


def documents_of(task: LoadedTask) -> list[Document]:
    """Return the texts by which the documents of a task are recognised.

    Those of a group are returned task by task.
    """
    found = list[Document]()
    for subtask in task.subtasks.values():
        if task.path:
            found += map(of_prompt, subtask.prompts)
        else:
            found += map(_of_row, subtask.eval_docs)
    return found


def without_documents(task: LoadedTask, numbers: frozenset[int]) -> LoadedTask:
    """Return a task without some documents, which are then no examples either.

    A task of lm-eval is changed in place.

    numbers: of the documents, in the order of `documents_of`.

    Raises:
        ValueError: a task of a group has no documents left.
    """
    tasks = task.subtasks
    first = 0
    for name, subtask in tasks.items():
        count = len(subtask.eval_docs)
        kept = [n for n in range(count) if first + n not in numbers]
        first += count
        if not kept:
            raise ValueError(f"tasks={task.name}: no document of {name} is left")
        if task.path:
            tasks[name] = subtask.of([subtask.prompts[n] for n in kept])
        else:
            _keep(subtask, kept)
    return replace(task, loaded={**task.loaded, "tasks": tasks})


def workload_of(task: LoadedTask, limit: int | None, num_fewshot: int | None) -> Workload:
    """Estimate the tokens that a model reads and writes for a task, from some of its documents.

    limit, num_fewshot: as in `ZeroShot`.
    """
    read = 0.0
    written = 0.0
    for subtask in task.loaded["tasks"].values():
        documents = subtask.eval_docs
        count = min(limit or len(documents), len(documents))
        sample = [documents[n] for n in range(0, count, math.ceil(count / SAMPLE))]
        shots = num_fewshot
        if shots is None:
            shots = subtask.get_config("num_fewshot") or 0
        characters = sum(_characters(subtask, document) for document in sample) / len(sample)
        read += count * (1 + shots) * characters / CHARACTERS_PER_TOKEN
        if subtask.OUTPUT_TYPE == "generate_until":
            options = subtask.get_config("generation_kwargs") or {}
            written += count * options.get("max_gen_toks", LONGEST) * SHARE_WRITTEN
    return Workload(read, written)


def _characters(task: Any, document: Any) -> int:
    """Return the characters that a model reads for a document, one time for each choice."""
    question = len(str(task.doc_to_text(document)))
    if task.OUTPUT_TYPE != "multiple_choice":
        return question
    return sum(question + len(str(choice)) for choice in task.doc_to_choice(document))


def of_prompt(prompt: Prompt) -> Document:
    """Return by what a prompt is recognised: its turns, and the lines of the question."""
    question, *others = turns(prompt)
    return document_of(question, [*others, *question.splitlines()], letters_and_digits)


def _of_row(row: Mapping[str, Any]) -> Document:
    """Return by what a row of a data set is recognised: its strings.

    The longest one tells what is asked: a passage, or a question without a passage. In lists are
    choices and answers, of which short ones tell nothing.
    """
    fields = [value for value in row.values() if isinstance(value, str)]
    in_lists = [text for value in row.values() for text in _long_strings(value)]
    whole = max([*fields, *in_lists], key=len, default="")
    return document_of(whole, [*fields, *in_lists], letters_and_digits)


def _long_strings(value: Any) -> Iterator[str]:
    """Yield the strings of OVERLAP words and more in a list, or in a mapping."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            if isinstance(one, str) and len(letters_and_digits(one)) >= OVERLAP:
                yield one
            else:
                yield from _long_strings(one)


def _keep(task: Any, kept: list[int]) -> None:
    """Restrict a task of lm-eval, and examples that are documents, to these documents."""
    documents = task.eval_docs
    remaining: Any = [documents[n] for n in kept]
    if examples_are_documents(task):
        task.sampler.replace_df(remaining)
    if isinstance(documents, Dataset):  # whose columns some tasks ask for
        remaining = documents.select(kept)

    def remaining_documents() -> Any:
        return remaining

    name = "test_docs" if task.has_test_docs() else "validation_docs"
    setattr(task, name, remaining_documents)
