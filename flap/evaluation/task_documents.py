"""Identify and leave out documents of a loaded task, and estimate the workload of the task.

Documents that the run has used for calibration or training are left out of the measurement.
A *run of words* is a sequence of consecutive words of a text (flap/data/overlap.py).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset

from flap.data import Prompt
from flap.data.overlap import OVERLAP, Document, document_of, letters_and_digits, turns
from flap.evaluation.few_shot import examples_are_documents
from flap.evaluation.zero_shot_tasks import LoadedTask
from flap.runtime.agenda import Workload

LONGEST = 256  # lm-eval's maximum number of tokens in an answer, if the task sets no maximum
# SAMPLE, CHARACTERS_PER_TOKEN and SHARE_WRITTEN are used to estimate how many tokens a model reads
# and generates in a task.
SAMPLE = 20  # maximum number of documents whose lengths are averaged
CHARACTERS_PER_TOKEN = 4
SHARE_WRITTEN = 0.5  # the estimated length of an answer, as a share of the maximum length


def documents_of(task: LoadedTask) -> list[Document]:
    """Return, for each document of a task, the runs of words that identify it.

    For a group of tasks, the documents of its first task come first, then the documents of its
    second task, and so on.
    """
    found = list[Document]()
    for subtask in task.subtasks.values():
        if task.path:
            found += map(of_prompt, subtask.prompts)
        else:
            found += map(_of_row, subtask.eval_docs)
    return found


def without_documents(task: LoadedTask, numbers: frozenset[int]) -> LoadedTask:
    """Return a task in which the given documents are neither measured nor shown as examples.

    A task or group of lm-eval is changed in place. For a file of prompts, a new task is made.

    numbers: the indices of the documents to leave out, in the list that `documents_of` returns.

    Raises:
        ValueError: no documents of the task, or of one task of the group, are left.
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
    """Estimate from a sample of documents how many tokens a model reads and generates in a task.

    limit, num_fewshot: the options of `ZeroShot`.
    """
    read = 0.0
    written = 0.0
    for subtask in task.subtasks.values():
        documents = subtask.eval_docs
        count = min(limit or len(documents), len(documents))
        sample = [documents[n] for n in range(0, count, math.ceil(count / SAMPLE))]
        shots = num_fewshot
        if shots is None:
            shots = subtask.get_config("num_fewshot") or 0
        characters = sum(_characters(subtask, document) for document in sample) / len(sample)
        read += count * (1 + shots) * characters / CHARACTERS_PER_TOKEN
        if subtask.OUTPUT_TYPE == "generate_until":
            written += count * longest_answer(subtask) * SHARE_WRITTEN
    return Workload(read, written)


def longest_answer(task: Any) -> int:
    """Return the maximum number of tokens in an answer to a task of lm-eval."""
    options = task.get_config("generation_kwargs") or {}
    return int(options.get("max_gen_toks", LONGEST))


def _characters(task: Any, document: Any) -> int:
    """Return the number of characters in the texts that the model reads for a document.

    In a multiple-choice task, the model reads one text for each choice: the question with this
    choice.
    """
    question = len(str(task.doc_to_text(document)))
    if task.OUTPUT_TYPE != "multiple_choice":
        return question
    return sum(question + len(str(choice)) for choice in task.doc_to_choice(document))


def of_prompt(prompt: Prompt) -> Document:
    """Return the runs of words that identify a prompt of a file.

    The runs come from the turns of the prompt, and from the lines of its last turn, the question.
    """
    question, *others = turns(prompt)
    return document_of(question, [*others, *question.splitlines()], letters_and_digits)


def _of_row(row: Mapping[str, Any]) -> Document:
    """Return the runs of words that identify a row of a data set, taken from the row's strings.

    The longest string identifies the row even if this string is short, because it is usually the
    passage, or the question if there is no passage. The lists in a row contain choices and answers.
    Short strings in these lists are left out, because many documents share them.
    """
    fields = [value for value in row.values() if isinstance(value, str)]
    in_lists = [text for value in row.values() for text in _long_strings(value)]
    whole = max([*fields, *in_lists], key=len, default="")
    return document_of(whole, [*fields, *in_lists], letters_and_digits)


def _long_strings(value: Any) -> Iterator[str]:
    """Yield the strings in a list or mapping that are as long as a run of words, or longer.

    A run of words has OVERLAP words. Lists and mappings may be nested to any depth.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            if isinstance(one, str) and len(letters_and_digits(one)) >= OVERLAP:
                yield one
            else:
                yield from _long_strings(one)


def _keep(task: Any, kept: list[int]) -> None:
    """Restrict a task of lm-eval to the documents with the indices `kept`.

    If the few-shot examples come from the task's documents, the examples are restricted, too.
    """
    documents = task.eval_docs
    remaining: Any = [documents[n] for n in kept]
    if examples_are_documents(task):
        task.sampler.replace_df(remaining)
    if isinstance(documents, Dataset):  # some tasks need a Dataset, because they read its columns
        remaining = documents.select(kept)

    def remaining_documents() -> Any:
        return remaining

    name = "test_docs" if task.has_test_docs() else "validation_docs"
    setattr(task, name, remaining_documents)
