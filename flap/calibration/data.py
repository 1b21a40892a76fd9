"""Text and token windows. Calibration and evaluation never see the same text unless the user names one file twice.

Legend: N windows · T tokens a window.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow
import pyarrow.json
import pyarrow.parquet
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.calibration.named import DATASETS, Split

FILE_FORMATS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Text:
    """One long text, where it came from, and its SHA-256: two uses of the same text are noticed by it."""

    name: str
    text: str
    origin: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_text(dataset: str, split: Split, field: str) -> Text:
    """The text behind a dataset name or a local file; `field` is the config key that errors name.

    Raises:
        ValueError: the name is unknown, the file is missing, empty or unreadable, or nothing can be downloaded.
    """
    if dataset in DATASETS:
        try:
            text, origin = DATASETS[dataset](split)
        except ConnectionError as error:
            raise ValueError(f"{field}={dataset}: {error}") from error
        return Text(dataset, text, origin)
    path = Path(dataset)
    if path.suffix not in FILE_FORMATS or not path.is_file():
        what = "no such file" if path.suffix in FILE_FORMATS else "unknown dataset"
        names = ", ".join(DATASETS)
        raise ValueError(f"{field}={dataset}: {what}; expected {names}, or a .txt, .jsonl or .parquet file")
    text = _read_file(path, field)
    if not text.strip():
        raise ValueError(f"{field}={dataset}: the file holds no text")
    return Text(path.name, text, str(path.resolve()))


def calibration_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, num_samples: int, seq_len: int, seed: int
) -> Tensor:
    """`num_samples` windows of the text that do not overlap, chosen by the seed, as tokens_NT (int64).

    Raises:
        ValueError: the text has fewer windows than that.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, "calibration.dataset")
    if len(tokens_NT) < num_samples:
        raise ValueError(
            f"calibration.dataset={text.name}: {len(tokens_NT)} windows of {seq_len} tokens are too few for "
            f"calibration.num_samples={num_samples}; lower it, or calibration.seq_len, or take a longer text"
        )
    order = torch.randperm(len(tokens_NT), generator=torch.Generator().manual_seed(seed))
    return tokens_NT[order[:num_samples]]


def evaluation_windows(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, max_tokens: int | None) -> Tensor:
    """The first windows of the text, one after the other, `max_tokens` at most, as tokens_NT (int64).

    Raises:
        ValueError: the text is shorter than one window.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, "eval.perplexity.datasets")
    return tokens_NT if max_tokens is None else tokens_NT[: max(1, max_tokens // seq_len)]


def tokens_sha256(tokens_NT: Tensor) -> str:
    """SHA-256 of token windows: says which text, tokenizer, number, length and order they come from."""
    return hashlib.sha256(tokens_NT.numpy().tobytes() + str(tuple(tokens_NT.shape)).encode()).hexdigest()


@lru_cache(maxsize=4)  # the cells of a sweep in one process tokenise once
def _cut(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, field: str) -> Tensor:
    """Tokenise the whole text once and cut it into windows; the tail that fills none is left out."""
    tokens = torch.tensor(tokenizer(text.text, verbose=False).input_ids)
    if len(tokens) < seq_len:
        raise ValueError(f"{field}={text.name}: its {len(tokens)} tokens do not fill one window of {seq_len}")
    return tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len)


def _read_file(path: Path, field: str) -> str:
    """A .txt file as it is, or the column 'text' of a .jsonl or .parquet file, joined by empty lines."""
    try:
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8")
        table = pyarrow.json.read_json(path) if path.suffix == ".jsonl" else pyarrow.parquet.read_table(path)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{field}={path}: cannot be read as {path.suffix} ({type(error).__name__})") from error
    if "text" not in table.column_names:
        raise ValueError(f"{field}={path}: no column 'text', only {', '.join(table.column_names)}")
    rows = table.column("text").to_pylist()
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"{field}={path}: column 'text' holds something that is no text (null or a number)")
    return "\n\n".join(rows)
