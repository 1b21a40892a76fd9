"""The choices of the `recover` group: which weights are trained, on what, and for how long."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from flap.config import require
from flap.data import HELD_OUT
from flap.models import ModelAdapter
from flap.storage import ranks

HELD_OUT_WINDOWS = 32  # of a text that is read for the training
EVALUATIONS = (
    10  # at most; and at least EVERY times as many windows are trained on as each evaluates
)
EVERY = 4
RISING = 0.05  # of the steps have a rising learning rate
WRITERS = ("dense", "pruned", "both")
STEP = 1024  # tokens, at least, unless a batch size is given: steps of 128 at the same rate made SmolLM2 worse


@dataclass(frozen=True)
class Recovery:
    """The options of a training.

    The learning rate rises for a twentieth of the steps and falls as a cosine (`share_of_rate`). With a rank, updates
    W + 2 B A of all Linear modules are trained, A with `rank` rows, and merged at the end (LoRA, arXiv 2106.09685).
    """

    dataset: Any  # a text or mixture, as for calibration; None: the calibration windows
    tokens: int  # trained on in whole steps, each `epochs` times; at least one step
    learning_rate: float  # of AdamW at its highest, above 0; times each tensor's root mean square if there is no rank
    rank: int | None = (
        None  # of low-rank updates, 1 or more; None: all weights but embeddings and head are trained
    )
    seq_len: int = 256  # tokens in a window, 2 or more
    batch_size: int | None = (
        8  # windows a step, a multiple of the processes; None: as few as have STEP tokens
    )
    patience: int = 2  # evaluations without a new best after which training ends, 1 or more
    gradient_checkpointing: bool = (
        False  # True: activations are computed again, not kept: less memory, more time
    )
    epochs: int = 1  # times that each window is trained on, 1 or more
    held_out: int = HELD_OUT_WINDOWS  # not trained on: the divergence on them decides what is best, and is reported
    use: str = "recovery"  # whose windows these are, "calibration" or its own
    writer: str = "dense"  # who answers the prompts that are trained on: the dense model, the pruned one, both in turns

    def __post_init__(self) -> None:
        require(
            self.writer in WRITERS, "recover.writer", self.writer, f"one of {', '.join(WRITERS)}"
        )
        for name in ("seq_len", "batch_size", "rank", "patience", "epochs"):
            value = getattr(self, name)
            least = 2 if name == "seq_len" else 1
            require(
                value is None or value >= least,
                f"recover.{name}",
                value,
                f"a whole number >= {least}",
            )
        valid = 0 < self.learning_rate < math.inf
        require(valid, "recover.learning_rate", self.learning_rate, "a number > 0")
        step = f"{self.tokens_a_step}, one step of {self.windows_a_step} windows of {self.seq_len}, or more"
        require(self.tokens >= self.tokens_a_step, "recover.tokens", self.tokens, step)

    @property
    def name(self) -> str:
        """The name of the choice."""
        if self.use == "calibration":
            return "reconstruct"
        return "full" if self.rank is None else "lora"

    @property
    def windows_a_step(self) -> int:
        """The windows that one step is made from, as many in each process."""
        enough = math.ceil(STEP / (self.seq_len * ranks.size()))
        most = self.tokens // self.seq_len // ranks.size()
        return self.batch_size or max(1, min(enough, most)) * ranks.size()

    @property
    def tokens_a_step(self) -> int:
        """The tokens that one step is made from."""
        return self.windows_a_step * self.seq_len

    @property
    def windows(self) -> int:
        """The windows of an epoch: whole steps of them."""
        return self.tokens // self.tokens_a_step * self.windows_a_step

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.epochs * (self.tokens // self.tokens_a_step)

    @property
    def steps_an_evaluation(self) -> int:
        """The steps after which the divergence on the held-out windows is measured."""
        return math.ceil(max(self.steps / EVALUATIONS, EVERY * self.held_out / self.windows_a_step))

    def share_of_rate(self, step: int) -> float:
        """Return the share of the highest learning rate that a step has, counted from 0: never 0, as all count."""
        rising = math.ceil(RISING * self.steps)
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising))) / 2

    def check(self, adapter: ModelAdapter) -> None:
        """Check that a model, which may have no weights yet, can be trained so.

        Raises:
            ValueError: it cannot.
        """
        share = f"a multiple of {ranks.size()}, the number of processes"
        shared = self.batch_size is None or self.batch_size % ranks.size() == 0
        require(shared, "recover.batch_size", self.batch_size, share)
        blocks = [
            adapter.mlp(i) for i in range(len(adapter.layers))
        ]  # a layer of a hybrid may have none
        stacked = not all(
            isinstance(block.watched, nn.Linear | Conv1D) for block in blocks if block.num_units
        )
        allowed = "full or none for this model, whose experts are stacked in one tensor and are no Linear modules"
        require(self.rank is None or not stacked, "recover", self.name, allowed)


@dataclass(frozen=True)
class Reconstruction:
    """The options of a training on the calibration windows alone, so that nothing is read that pruning has not read.

    `Recovery` explains them. The windows on which fits and searches are judged are held out here as well.
    """

    epochs: int  # times that each window is trained on, 1 or more
    learning_rate: float
    batch_size: int | None = None
    patience: int = 2
    gradient_checkpointing: bool = False
    writer: str = "dense"

    def on(self, num_samples: int, seq_len: int) -> Recovery:
        """Return the training on so many calibration windows of so many tokens.

        Raises:
            ValueError: an option is out of range, or there are too few windows.
        """
        require(
            num_samples > 1,
            "calibration.num_samples",
            num_samples,
            "2 or more with recover=reconstruct",
        )
        held_out = math.ceil(num_samples / HELD_OUT)
        fitting = num_samples - held_out
        allowed = f"1 to {fitting}, the calibration windows that are not held out"
        valid = self.batch_size is None or 1 <= self.batch_size <= fitting
        require(valid, "recover.batch_size", self.batch_size, allowed)
        return Recovery(
            dataset=None, tokens=fitting * seq_len, seq_len=seq_len, held_out=held_out, use="calibration",
            **asdict(self),
        )  # fmt: skip
