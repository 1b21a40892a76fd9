"""Let the model generate the text `self`, so that calibration or training needs no other text.

Source: Williams and Aletras, arXiv 2410.17711.

Legend: N: sequences · T: tokens in a sequence.
"""

import logging
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flap.data import SELF, Text, Windows, repetition
from flap.data.part_reader import beginning
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
from flap.runtime.progress import Reach, showing
from flap.storage import NOT_KEPT, Kind, Notes, WorkFolder, as_json

log = logging.getLogger(__name__)

WRITTEN: Kind[dict[str, Any]] = as_json("self")

SEQUENCES = 64  # sequences per batch; the last batch may have up to 1.5 times as many
FEW = 4  # sequences per batch if the whole text has fewer than SEQ_LEN tokens, as in a short test
SEQ_LEN = 512  # tokens per sequence; fewer if the context of the model is shorter


@dataclass
class Draft:
    """The part of the text `self` that the model has generated so far."""

    windows: Windows  # the windows that will be cut from `self`, and from other texts of a mixture
    context: int | None = None  # the context length of the model in tokens; None if it is unlimited
    documents: list[str] = field(default_factory=list)
    tokens: int = 0  # number of tokens of all documents so far
    # number of sequences that were dropped, because they are empty or repeat themselves
    dropped: int = 0

    def __post_init__(self) -> None:
        [part] = [p for p, part in enumerate(self.windows.parts) if part.dataset == SELF]
        self.begins_with, self.start = beginning(
            self.windows.tokenizer, f"{self.windows.field}.dataset.{SELF}"
        )
        self.needed = self.windows.tokens_to_write(part)  # number of tokens that the text must have

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the text depends on, except the model, as a part of a cache key."""
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
        """The number of tokens per sequence."""
        return min(SEQ_LEN, self.needed, self.context or sys.maxsize)

    @property
    def sequences(self) -> int:
        """The number of sequences per batch."""
        return SEQUENCES if self.needed >= SEQ_LEN else min(FEW, SEQUENCES)

    @property
    def left(self) -> int:
        """The number of tokens that the model must still generate."""
        return self.needed - self.tokens

    def show(self, reach: Reach, beside: int = 0) -> None:
        """Show in the progress bar how many tokens of the text have been generated.

        reach: a callback that shows the progress.
        beside: the number of tokens already generated in a batch that is not yet complete.
        """
        tokens = min(self.tokens + beside, self.needed)
        reach(tokens, tokens)

    def add(self, sequence_T: Tensor) -> None:
        """Add a sequence, unless it is empty or repeats itself.

        Raises:
            ValueError: almost all sequences are empty or repeat themselves.
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
                f"{self.windows.field}.dataset={SELF}: {self.dropped} of {written} generated "
                "sequences repeat themselves or are empty; use another text or model"
            )


def write(model: PlacedModel, draft: Draft, work: WorkFolder = NOT_KEPT) -> dict[str, Any]:
    """Let the model generate the text `self`.

    Each token is sampled from the distribution that the model predicts (temperature 1). Sequences
    do not stop at EOS, because the model was trained on sequences of several documents. `draft`
    collects the documents. JSON can store the result, from which `written_text` makes a text.

    work: the working directory, which stores batches. Stored batches are not generated again.

    Raises:
        ValueError: almost all sequences are empty or repeat themselves.
    """
    if draft.begins_with != "BOS":
        log.warning(
            "%s.dataset=%s: the model begins with %s", draft.windows.field, SELF, draft.begins_with
        )
    in_memory = ready_to_write(model, f"{draft.windows.field}.dataset={SELF}")
    notes = Notes(BATCH, work)
    with (
        showing("write own text", draft.needed) as reach,
        in_memory.callable(),
        attention_of_one_query(in_memory),
    ):
        written = batches(
            draft.windows,
            write=lambda _: _batch(in_memory, draft, reach),
            at_once=lambda _: _batches_at_once(draft),
            notes=notes,
        )
        for batch in written:
            for sequence_T in torch.tensor(batch["tokens"]):
                draft.add(sequence_T)
            draft.show(reach)
    return {
        "documents": draft.documents,
        "tokens": draft.tokens,
        "dropped": draft.dropped,
        "begins_with": draft.begins_with,
        "seconds": sum(batch["seconds"] for batch in notes),
    }


def written_text(written: dict[str, Any]) -> Text:
    """Make the text `self` from the result of `write`."""
    origin = f"written by the model from {written['begins_with']}"
    return Text.joined(SELF, written["documents"], origin)


def _batches_at_once(draft: Draft) -> int:
    """Return how many of the next batches can be generated at the same time.

    Only batches that are certainly needed are counted. The result is 0 if the text is complete.
    """
    if draft.left <= 0:
        return 0
    # Assume that the text of a batch has 10 % more tokens than were sampled, because the text may
    # have more tokens when it is tokenised again.
    tokens_per_batch = 1.1 * draft.sequences * draft.seq_len
    # The size of the last batch depends on the number of tokens in all earlier batches. So a batch
    # that may be the last batch is generated only after all earlier batches.
    last_batch = 1.5 * draft.sequences * draft.seq_len / 1.02
    others = int((draft.left - last_batch) // tokens_per_batch)
    return 1 + max(0, others)


def _batch(model: PlacedModel, draft: Draft, reach: Reach) -> dict[str, Any]:
    """Generate the next batch, and return its tokens as lists, one for each sequence.

    reach: a callback that shows the progress.
    """
    # In the last batch, sample 2 % more tokens than are needed, because the text may have fewer
    # tokens when it is tokenised again.
    sequences = math.ceil(1.02 * draft.left / draft.seq_len)
    if sequences >= 1.5 * draft.sequences:
        sequences = draft.sequences

    def show(tokens_of_each: int) -> None:
        draft.show(reach, sequences * tokens_of_each)

    tokens_NT = sample(model, draft.start, sequences, draft.seq_len, show)
    return {"tokens": tokens_NT.tolist()}
