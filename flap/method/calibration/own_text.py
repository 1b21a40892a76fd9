"""The calibration text `self`: the model writes it, so that it costs no data (Williams and Aletras, arXiv 2410.17711).

Legend: N sequences · T tokens a sequence.
"""

import logging
import math
import sys
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from flap.data import SELF, Text, Windows, repetition
from flap.data.read_windows import beginning
from flap.data.token_text import decoded
from flap.method.calibration.sampling import (
    BATCH,
    DISTINCT,
    attention_of_one_query,
    batches,
    ready_to_write,
    sample,
)
from flap.models import PlacedModel
from flap.storage import NOT_KEPT, Kind, Notes, WorkFolder, as_json
from flap.storage.progress import progress

log = logging.getLogger(__name__)

WRITTEN: Kind[dict[str, Any]] = as_json("self")

SEQUENCES = 64  # in a batch, and at the end half as many again
FEW = 4  # where less than one sequence of SEQ_LEN is to write: shorter ones, as in a smoke run
SEQ_LEN = 512  # tokens of a sequence, at most the context


@dataclass
class Draft:
    """What the model has written so far for these windows."""

    windows: Windows  # whose text `self` is still to write
    context: int | None = None  # of the model, in tokens; None: unlimited
    documents: list[str] = field(default_factory=list)
    tokens: int = 0  # of the documents
    dropped: int = 0  # sequences

    def __post_init__(self) -> None:
        [p] = [p for p, part in enumerate(self.windows.parts) if part.dataset == SELF]
        self.begins_with, self.start = beginning(
            self.windows.tokenizer, f"{self.windows.field}.dataset.{SELF}"
        )
        self.needed = self.windows.tokens_to_write(p)  # tokens

    @property
    def key(self) -> dict[str, Any]:
        """All that the text depends on besides the model, as part of its cache key."""
        wanted = {
            "num_tokens": self.needed,
            "seq_len": self.seq_len,
            "window": self.windows.seq_len,
        }
        begins = {"begins_with": self.start, "bos": self.windows.bos}
        draw = {
            "use": self.windows.field,
            "seed": self.windows.seed,
            "vocabulary": self.windows.key["vocabulary"],
        }
        return {**wanted, **begins, **draw}

    @property
    def seq_len(self) -> int:
        """The tokens of a sequence."""
        return min(SEQ_LEN, self.needed, self.context or sys.maxsize)

    @property
    def sequences(self) -> int:
        """The sequences of a batch."""
        return SEQUENCES if self.needed >= SEQ_LEN else min(FEW, SEQUENCES)

    @property
    def left(self) -> int:
        """The tokens that are still to write."""
        return self.needed - self.tokens

    def add(self, sequence_T: Tensor) -> None:
        """Add a sequence, unless it is empty or a loop.

        Raises:
            ValueError: the model writes hardly anything else.
        """
        tokenizer = self.windows.tokenizer
        text = decoded(sequence_T.tolist(), tokenizer)
        num_tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
        if not num_tokens or repetition(sequence_T.tolist()) > 1 - DISTINCT:
            self.dropped += 1
        else:
            self.documents.append(text)
            self.tokens += num_tokens
        if self.dropped > 4 * (SEQUENCES + len(self.documents)):
            written = self.dropped + len(self.documents)
            raise ValueError(
                f"{self.windows.field}.dataset={SELF}: {self.dropped} of {written} generated sequences repeat "
                "themselves or are empty; use another text or model"
            )


def write(model: PlacedModel, draft: Draft, work: WorkFolder = NOT_KEPT) -> dict[str, Any]:
    """Return the documents that the model writes for a draft, their tokens, how many were dropped, and seconds.

    The model samples from its own distribution (temperature 1) and does not stop at EOS, as it was trained on documents
    one after another. work: the batches that an interrupted run has left there are not written again.

    Raises:
        ValueError: the model writes hardly anything but loops.
    """
    if draft.begins_with != "BOS":
        log.warning(
            "%s.dataset=%s: the model begins with %s", draft.windows.field, SELF, draft.begins_with
        )
    whole = ready_to_write(model, f"{draft.windows.field}.dataset={SELF}")
    notes = Notes(BATCH, work)
    written = batches(
        draft.windows, lambda _: _batch(whole, draft), lambda _: _batches_at_once(draft), notes
    )
    sequences = chain.from_iterable(torch.tensor(batch["tokens"]) for batch in written)
    with whole.callable(), attention_of_one_query(whole):
        for sequence_T in progress(sequences, "write own text", len):
            draft.add(sequence_T)
    facts = {"tokens": draft.tokens, "dropped": draft.dropped, "begins_with": draft.begins_with}
    return {
        "documents": draft.documents,
        **facts,
        "seconds": sum(batch["seconds"] for batch in notes),
    }


def written_text(written: dict[str, Any]) -> Text:
    """Return what the model has written as a text."""
    return Text.joined(
        SELF, written["documents"], f"written by the model from {written['begins_with']}"
    )


def _batches_at_once(draft: Draft) -> int:
    """Return how many batches may be written at the same time: none that may prove too long; 0: none."""
    tokens = 1.1 * draft.sequences * draft.seq_len  # of a batch, tokenized again
    more = (draft.left - 1.5 * draft.sequences * draft.seq_len / 1.02) // tokens
    return (draft.left > 0) + max(0, int(more))


def _batch(model: PlacedModel, draft: Draft) -> dict[str, Any]:
    """Return the tokens_NT of the next batch."""
    needed = math.ceil(
        1.02 * draft.left / draft.seq_len
    )  # text has fewer tokens when it is tokenized again
    needed = needed if needed < 1.5 * draft.sequences else draft.sequences
    return {"tokens": sample(model, draft.start, needed, draft.seq_len).tolist()}
