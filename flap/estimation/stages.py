"""The stages of a run, as in `flap.pipeline.run`: passes, tokens and operations of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from flap.calibration.writing import SEQ_LEN, SEQUENCES
from flap.estimation.operations import Operations
from flap.estimation.work import Place, Training, Work
from flap.models.shapes import Shapes

VERIFIED_TOKENS = 32  # the predictions of so many tokens are compared after saving


@dataclass(frozen=True)
class Stage:
    """A stage: walks over all layers, and forward passes in their place; tokens through a layer, on average."""

    name: str
    passes: int = 0
    tokens: float = 0
    operations: float = 0


@dataclass(frozen=True)
class Stages:
    """The stages of a run."""

    shapes: Shapes
    work: Work
    place: Place

    def __iter__(self) -> Iterator[Stage]:
        yield Stage("load")
        if self.work.own_tokens:
            yield self._writing()
        if self.work.plain_statistics:
            yield self._observing("calibrate", self.work.tokens, covariance=False)
        if self.work.in_sequence:
            yield self._in_sequence()
        else:
            yield self._score()
            yield self._allocate()
            yield self._compress()
        if self.work.training is not None:
            yield self._training(self.work.training)
        if self.work.saves:
            # written layer by layer, if it is on disk; then it is run, and so is what was written
            yield self._running("save", 3 if self.place.streams else 2, 2 * VERIFIED_TOKENS)
        if self.work.texts is not None:
            models = 2 if self.work.training is None else 3  # dense, compressed, recovered
            yield self._running("evaluate", models * self.work.texts.count, models * self.work.texts.tokens)

    @cached_property
    def _operations(self) -> Operations:
        return Operations(self.shapes, self.work)

    def _observing(self, name: str, tokens: float, covariance: bool, more: float = 0) -> Stage:
        operations = self._operations.forward(tokens) + self._operations.observe(tokens, covariance)
        return Stage(name, 1, tokens, operations + more)

    def _running(self, name: str, passes: int, tokens: float) -> Stage:
        """Return a stage in which the dense or the pruned model runs and predicts."""
        return Stage(name, passes, tokens, self._operations.forward(tokens) + self._operations.head(tokens))

    def _writing(self) -> Stage:
        """Return the stage in which the model writes its text: the weights are read for each token of a batch."""
        batches = math.ceil(self.work.own_tokens / (SEQUENCES * SEQ_LEN))
        return self._running("write", batches * SEQ_LEN, self.work.own_tokens)

    def _training(self, training: Training) -> Stage:
        """Return the stage in which the compressed model is trained: the dense model runs beside it.

        A backward pass takes the operations of two forward passes; of one where weights have no gradient, as in
        the head.
        """
        passes = 1 + (1 if training.in_parts else 2) + training.checkpointing
        measured = training.held_out * training.evaluations
        student, kept = training.tokens * passes + measured, 1 - self.work.ratio
        forward = self._operations.forward(training.tokens + measured) + self._operations.forward(student, kept)
        head = self._operations.head(3 * training.tokens + 2 * measured)
        return Stage("recover", training.steps * (1 + passes), training.tokens + measured + student, forward + head)

    def _score(self) -> Stage:
        """Return the stage that scores, and in the same walk the first step of a search."""
        covariance = self.work.metric.needs_covariance
        operations = self._operations.scores() if covariance else 0
        if search := self._search("score"):
            return replace(search, operations=search.operations + operations)
        return self._observing("score", self.work.tokens, True, operations) if covariance else Stage("score", 1)

    def _allocate(self) -> Stage:
        """Return the stage in which the plan is made; the rounds of a search are walks."""
        return self._search("allocate") or Stage("allocate")

    def _search(self, stage: str) -> Stage | None:
        """Return the walks of a search in a stage; None if there are none."""
        walks = self.work.walks(stage, self.shapes)
        observed = self.work.tokens * self.work.observed(stage)
        each = self._observing(stage, observed, True)
        tokens = sum(each.tokens + walk.tokens * walk.mean_streams for walk in walks)
        operations = sum(each.operations + self._operations.search(walk) for walk in walks)
        return Stage(stage, len(walks), tokens, operations) if walks else None

    def _compress(self) -> Stage:
        if not self.work.compensation.needs_covariance:
            return Stage("compress", 1)
        return self._observing("compress", self.work.tokens, True, self._operations.final_fits())

    def _in_sequence(self) -> Stage:
        covariance, tokens = self.work.needs_covariance, self.work.tokens
        fits = self._operations.scores() if self.work.metric.needs_covariance else 0
        fits += self._operations.final_fits() if self.work.compensation.needs_covariance else 0
        again = self._operations.forward(tokens, 1 - self.work.ratio)  # each layer runs before and after it is pruned
        return Stage("prune", 1, 2 * tokens, self._observing("prune", tokens, covariance, fits + again).operations)
