"""The options of the config group `recover`: which weights to train, on which text, and how long.

Some windows of the training text are held out: the model is not trained on them. In an evaluation,
the divergence KL(dense ‖ trained) of the predictions is measured on the held-out windows. The dense
model is the model before pruning, and the compressed model is the model after units (heads, neurons
or experts) were removed.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from flap.config import require, require_counts
from flap.data import HELD_OUT
from flap.models import ModelAdapter
from flap.runtime import ranks

HELD_OUT_WINDOWS = 32  # number of held-out windows of a training text
# maximum number of evaluations during training, not counting the evaluation before the first step
EVALUATIONS = 10
# Minimum number of training windows between two evaluations, as a multiple of the number of
# held-out windows.
EVERY = 4
RISING = 0.05  # share of the steps, at the beginning, in which the learning rate rises (warm-up)
WRITERS = ("dense", "pruned", "both")
# Minimum number of tokens in an optimizer step, unless a batch size is given or there are too few
# tokens. With 128 tokens in a step, and the same learning rate, training made SmolLM2 worse.
STEP = 1024


@dataclass(frozen=True)
class Recovery:
    """Train the compressed model to predict what the dense model predicts.

    The learning rate rises during the first twentieth of the steps, and then falls as a cosine
    (`share_of_rate`). If `rank` is given, each Linear module uses W + 2 B A instead of its weight
    W, and only A and B are trained (LoRA, arXiv 2106.09685). A has `rank` rows. At the end of the
    training, 2 B A is added to W.
    """

    # the training text or a mixture of texts, written as in the option `calibration.dataset`; None
    # if `use` is "calibration"
    dataset: Any
    # Number of tokens to train on, rounded down to whole steps. There must be enough tokens for one
    # step. The model is trained on each token `epochs` times.
    tokens: int
    # Highest learning rate of AdamW, above 0. If `rank` is None, the learning rate of each tensor
    # is multiplied by the root mean square of the tensor.
    learning_rate: float
    # The rank of LoRA's low-rank updates, at least 1. If it is None, all weights except embeddings
    # and LM head are trained.
    rank: int | None = None
    # number of tokens in a window, 2 or more
    seq_len: int = 256
    # Number of windows in a step, a multiple of the number of processes. With None, it is the
    # smallest multiple for which a step has at least STEP tokens. If `tokens` is too small for such
    # a step, it is the largest multiple that `tokens` allows.
    batch_size: int | None = 8
    # training ends after this many evaluations in a row without a new lowest divergence; 1 or more
    patience: int = 2
    # if true, activations are computed again instead of being stored, which takes less memory and
    # more time
    gradient_checkpointing: bool = False
    # How many times each window is trained on, at least 1.
    epochs: int = 1
    # The number of held-out windows. After training, the model gets the weights with which an
    # evaluation has measured the lowest divergence on these windows.
    held_out: int = HELD_OUT_WINDOWS
    # The windows to train on: "recovery" stands for windows of `dataset`, and "calibration" stands
    # for the calibration windows.
    use: str = "recovery"
    # which model answers the training prompts: "dense", "pruned" or "both"; with "both", every
    # second window has answers of the pruned model
    writer: str = "dense"

    def __post_init__(self) -> None:
        writers = f"one of {', '.join(WRITERS)}"
        require(self.writer in WRITERS, "recover.writer", self.writer, writers)
        require_counts(self, "recover", seq_len=2, batch_size=1, rank=1, patience=1, epochs=1)
        valid = 0 < self.learning_rate < math.inf
        require(valid, "recover.learning_rate", self.learning_rate, "a number > 0")
        step = f"one step of {self.windows_a_step} windows of {self.seq_len}"
        valid = self.tokens >= self.tokens_a_step
        require(valid, "recover.tokens", self.tokens, f"{self.tokens_a_step}, {step}, or more")

    @property
    def name(self) -> str:
        """The name of these options in the config group `recover`, such as "lora"."""
        if self.use == "calibration":
            return "reconstruct"
        return "full" if self.rank is None else "lora"

    @property
    def windows_a_step(self) -> int:
        """The number of windows in one step, a multiple of the number of processes."""
        enough = math.ceil(STEP / (self.seq_len * ranks.size()))
        most = self.tokens // self.seq_len // ranks.size()
        return self.batch_size or max(1, min(enough, most)) * ranks.size()

    @property
    def tokens_a_step(self) -> int:
        """The number of tokens in one step."""
        return self.windows_a_step * self.seq_len

    @property
    def windows(self) -> int:
        """The number of windows in an epoch, rounded down to whole steps."""
        return self.tokens // self.tokens_a_step * self.windows_a_step

    @property
    def steps(self) -> int:
        """The number of steps in all epochs."""
        return self.epochs * (self.tokens // self.tokens_a_step)

    @property
    def steps_an_evaluation(self) -> int:
        """The number of steps between two evaluations on the held-out windows."""
        steps_of_windows = EVERY * self.held_out / self.windows_a_step
        return math.ceil(max(self.steps / EVALUATIONS, steps_of_windows))

    def share_of_rate(self, step: int) -> float:
        """Return the learning rate of a step, as a share of the highest learning rate.

        The share is never 0, so that every step trains the model. Steps are counted from 0.
        """
        rising = math.ceil(RISING * self.steps)
        if step < rising:
            return (step + 1) / rising
        progress = (step - rising) / max(1, self.steps - rising)
        return (1 + math.cos(math.pi * progress)) / 2

    def check(self, adapter: ModelAdapter) -> None:
        """Check that a model can be trained with these options. Its weights need not be loaded yet.

        Raises:
            ValueError: the batch size is not a multiple of the number of processes; or the options
                select LoRA (`rank` is not None), which cannot train experts that the model stacks
                in one tensor.
        """
        valid = self.batch_size is None or self.batch_size % ranks.size() == 0
        share = f"a multiple of {ranks.size()}, the number of processes"
        require(valid, "recover.batch_size", self.batch_size, share)

        mlps = [adapter.mlp(i) for i in range(len(adapter.layers))]
        linear = all(
            isinstance(mlp.watched, nn.Linear | Conv1D)
            for mlp in mlps
            if mlp.num_units  # a layer of a hybrid model may have no MLP
        )
        experts = "whose experts are stacked in one tensor and are no Linear modules"
        allowed = f"full or none for this model, {experts}"
        require(self.rank is None or linear, "recover", self.name, allowed)


@dataclass(frozen=True)
class Reconstruction:
    """Train all weights except embeddings and LM head, on the calibration windows only.

    `Recovery` explains the options. Every fifth calibration window is held out: the model is not
    trained on it. The option compensation=linear tests its least-squares fits on the same windows.
    """

    # number of times that each window is trained on, 1 or more
    epochs: int
    learning_rate: float
    batch_size: int | None = None
    patience: int = 2
    gradient_checkpointing: bool = False
    writer: str = "dense"

    def on(self, num_samples: int, seq_len: int) -> Recovery:
        """Return a `Recovery` that trains on the calibration windows that are not held out.

        num_samples: the number of all calibration windows, which have `seq_len` tokens each.

        Raises:
            ValueError: an option is out of range, or there are too few windows.
        """
        enough = "2 or more with recover=reconstruct"
        require(num_samples > 1, "calibration.num_samples", num_samples, enough)
        held_out = math.ceil(num_samples / HELD_OUT)
        fitting = num_samples - held_out
        allowed = f"1 to {fitting}, the calibration windows that are not held out"
        valid = self.batch_size is None or 1 <= self.batch_size <= fitting
        require(valid, "recover.batch_size", self.batch_size, allowed)
        return Recovery(
            dataset=None,
            tokens=fitting * seq_len,
            seq_len=seq_len,
            held_out=held_out,
            use="calibration",
            **asdict(self),
        )
