"""Toy tasks for lm-eval, with a few documents of words that the tests' tiny tokenizer knows.

The tasks are defined in lm-eval's YAML format. The tests know which answer to each document is
right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.evaluation import task_index, zero_shot_tasks

ANIMALS = ("cat", "dog", "red mat")
PLACES = ("mat", "tree", "old tree")
QUESTIONS = {
    "animals": ["the old", "a new", "then the", "and the blue", "it was the", "under a"],
    "places": ["on the", "under the old"],
}
CHOICES = {"animals": ANIMALS, "places": PLACES}
DOCUMENTS = f"""
from datasets import Dataset, DatasetDict

def of(questions, choices):
    rows = []
    for i, question in enumerate(questions):
        gold = i % len(choices)
        rows.append({{"question": question, "choices": choices, "gold": gold}})
    return Dataset.from_list(rows)

def animals(**_):
    train = [f"the w{{i}} was the" for i in range(20)]
    return DatasetDict(train=of(train, {ANIMALS}), validation=of({QUESTIONS["animals"]}, {ANIMALS}))

def places(**_):
    return DatasetDict(validation=of({QUESTIONS["places"]}, {PLACES}))
"""
CHAT = (  # a chat template that uses only words of the tiny tokenizer
    "{% for one in messages %}<s> {{ one.role }} {{ one.content }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s> a{% endif %}"
)
TASK = """
task: {name}
custom_dataset: !function documents.{documents}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
{more}
"""
TASKS = {
    "animals": ("animals", "training_split: train\ntag: toys"),
    "places": ("places", "tag: toys"),
    "fixed": ("animals", "training_split: train\nnum_fewshot: 0"),
    "own_shots": ("animals", "training_split: train\nnum_fewshot: 1"),
    "plain": ("animals", "metric_list: [{metric: acc}]"),
    "correlated": ("animals", "metric_list: [{metric: acc}, {metric: mcc}]"),
    "code": ("animals", "unsafe_code: true"),
    "mistakes": (
        "animals",
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: false}]",
    ),
}
GROUP = """
group: {name}
task: {tasks}
aggregate_metric_list: [{{metric: acc, weight_by_size: true}}]
"""
GROUPS = {"pair": "[animals, places]", "undecided": "[animals, mistakes]"}
WRITTEN = """
task: {name}
custom_dataset: !function documents.animals
output_type: generate_until
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: "cat"
{more}
generation_kwargs: {{until: ["dog"], max_gen_toks: 2, do_sample: {drawn}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: first, filter: [{{function: take_first}}]}}]
"""
WHOLE = """
task: whole
custom_dataset: !function documents.animals
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
"""


def write_toys(folder: Path) -> Path:
    """Write the YAML files of the tasks, and a Python file with their documents."""
    (folder / "documents.py").write_text(DOCUMENTS)
    for name, (documents, more) in TASKS.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, documents=documents, more=more))
    for name, tasks in GROUPS.items():
        (folder / f"{name}.yaml").write_text(GROUP.format(name=name, tasks=tasks))
    for name, drawn, more in (
        ("written", "false", ""),
        ("drawn", "true, temperature: 1.0", ""),
        ("asked", "false", "training_split: train"),
    ):
        (folder / f"{name}.yaml").write_text(WRITTEN.format(name=name, drawn=drawn, more=more))
    (folder / "whole.yaml").write_text(WHOLE)
    return folder


@contextmanager
def only_toys(folder: Path) -> Iterator[None]:
    """In a `with` block, let lm-eval find only the toy tasks, and let the hub seem offline."""
    manager = TaskManager(include_path=write_toys(folder), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        for module in (task_index, zero_shot_tasks):
            patch.setattr(module, "task_manager", lambda: manager)
        patch.setattr("flap.data.hub.hub_reachable", lambda: False)
        yield


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    normalised: bool,
    limit: int | None = None,
) -> list[list[float]]:
    """Return, for each document of a toy task, the log-likelihood of each of its choices.

    normalised: whether each value is divided by the number of characters of the choice.
    """
    documents = []
    for question in QUESTIONS[task][:limit]:
        scores = []
        for choice in CHOICES[task]:
            context, whole = (
                torch.tensor(tokenizer(text).input_ids)
                for text in (question, f"{question} {choice}")
            )
            log_prob_TV: Tensor = model(input_ids=whole[None]).logits[0].log_softmax(-1)
            found = sum(
                log_prob_TV[t - 1, whole[t]].item() for t in range(len(context), len(whole))
            )
            scores.append(found / len(choice) if normalised else found)
        documents.append(scores)
    return documents


def by_hand(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    normalised: bool,
    limit: int | None = None,
) -> list[bool]:
    """Return, for each document, whether the choice with the highest log-likelihood is right.

    The arguments are those of `log_likelihoods`.
    """
    documents = log_likelihoods(model, tokenizer, task, normalised, limit)
    return [scores.index(max(scores)) == i % len(scores) for i, scores in enumerate(documents)]


def mean(values: list[Any]) -> float:
    return sum(values) / len(values)
