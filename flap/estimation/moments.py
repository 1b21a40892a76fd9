"""The moments of each stage at which memory may be at its peak."""

from dataclasses import dataclass

from flap.calibration.writing import SEQ_LEN, SEQUENCES
from flap.estimation.parts import (
    COMOMENT_BYTES,
    FIT_COPIES,
    FIT_WEIGHTS,
    OBS_COPIES,
    OBS_WEIGHTS,
    PLAIN_WEIGHTS,
    RECORDED_BYTES,
    SHARD_BYTES,
    TRIAL_COPIES,
    TRIAL_WEIGHTS,
    Parts,
    Use,
)
from flap.search.cost import SearchWalk
from flap.search.divergence import EVERY, TOGETHER


@dataclass(frozen=True)
class Moments(Parts):
    """The moments of each stage; a stage's memory is that of the largest."""

    def load(self) -> list[Use]:
        """The whole model is loaded, unless it stays on disk."""
        read = 0 if self.place.streams or self.stays_mapped else self.bytes(self.shapes.parameters)
        return [self.weights(0) + Use(read=read)]

    def write(self) -> list[Use]:
        """The model writes a text: its keys and values are kept, of all layers."""
        in_memory = self.place.streams and self.work.texts_in_memory
        whole = Use(weights=self.bytes(self.shapes.parameters), read=self.bytes(self.shapes.parameters))
        width = sum(
            (attention.parameters - 2 * attention.output_parameters) / attention.outputs
            for attention, _ in (layer.blocks for layer in self.shapes.layers)
        )
        logits = 4 * SEQUENCES * self.shapes.vocabulary
        kept = Use(work=self.bytes(SEQUENCES * SEQ_LEN * width) + 3 * logits)
        return [(whole if in_memory else self.ends(self.head)) + kept]

    def calibrate(self) -> list[Use]:
        """Statistics without covariances are collected."""
        run = self.run(self.work.batch_tokens, RECORDED_BYTES)
        if not self.place.streams:
            return [self.layer() + run]
        tokens = self.work.tokens
        return [self.ends(0) + self.states(tokens, 1), self.layer() + self.states(tokens, 2) + run]

    def score(self) -> list[Use]:
        """Each layer is scored; in a search with trials in the same walk."""
        covariance, plain = self.work.metric.needs_covariance, self.in_float(PLAIN_WEIGHTS)
        factors = self.factors(OBS_COPIES, OBS_WEIGHTS) if covariance else plain
        if search := self._search("score", factors):
            return search
        if not covariance:
            return [self.layer() + plain]
        return self._observed(self._windows(), factors, 1)

    def allocate(self) -> list[Use]:
        """The plan is made; by the rounds of a search in several walks."""
        return self._search("allocate", Use()) or [self.layer()]

    def _search(self, stage: str, scoring: Use) -> list[Use]:
        """The walks of a search in a stage. scoring: what OBS takes, where it scores in the same walk."""
        walks = self.work.walks(stage, self.shapes)
        return [use for walk in walks for use in self._trials(walk, self.work.observed(stage), scoring)]

    def _trials(self, walk: SearchWalk, observed: bool, scoring: Use) -> list[Use]:
        """A walk of a search: trial fits, trial layers and their streams, and predictions at the end."""
        fitted, fitting = (
            Use(work=max(self._fitted(walk, i, copies) for i in range(len(self.shapes.layers)))) for copies in (0, 1)
        )
        before, streams = (self.states(walk.most_streams * walk.tokens, share) for share in (0.5, 1))
        copy = Use(work=self.bytes(self.shapes.largest_layer))
        run = self.layer() + copy + fitted + self.run(walk.tokens) + streams
        tokens = min(walk.tokens, max(TOGETHER, self.work.seq_len))
        logits = Use(work=tokens / EVERY * self.shapes.vocabulary * (8 + self.place.itemsize))
        end = self.ends(self.head) + before + logits
        if not observed:
            return [self.layer() + self.in_float(PLAIN_WEIGHTS) + fitting + before, run, end]
        observing = self.states(self.work.tokens, 2) + before
        factors = self.factors(TRIAL_COPIES, TRIAL_WEIGHTS) + fitting
        return [*self._observed(observing, factors), *self._observed(observing, scoring), run + self.comoments(), end]

    def compress(self) -> list[Use]:
        """Each layer is pruned."""
        if not self.work.compensation.needs_covariance:
            return [self.layer() + self.in_float(PLAIN_WEIGHTS) + self.pruned()]
        return self._observed(self._windows() + self.pruned(), self.factors(FIT_COPIES, FIT_WEIGHTS))

    def prune(self) -> list[Use]:
        """Each layer is scored and pruned before the next one is calibrated."""
        if self.work.needs_covariance:
            return [*self.score(), *self.compress()]
        states = self._windows() + self.pruned()
        run = self.run(self.work.batch_tokens, RECORDED_BYTES)
        return [
            self.ends(0) + states,
            self.layer() + states + run,
            self.layer() + states + self.in_float(PLAIN_WEIGHTS),
        ]

    def recover(self) -> list[Use]:
        """The compressed model is trained. The dense one is beside it, on a CPU as mapped files."""
        assert self.work.training is not None
        dense = self.bytes(self.shapes.parameters) if self.place.shared else 0
        return [Use(work=self.work.training.num_bytes, read=dense)]

    def save(self) -> list[Use]:
        """The checkpoint is written, and read back to be compared."""
        num_bytes = self.bytes(max(self.shapes.ends, self.shapes.largest_layer))
        read = Use(weights=num_bytes, read=num_bytes)
        if self.place.streams:
            return [read]
        total = self.kept_layers + self.bytes(self.shapes.ends)
        copied = 0 if self.place.shared else min(total, SHARD_BYTES)
        return [self.ends(self.head) + self.pruned() + read, self.ends(self.shapes.ends) + Use(host=copied)]

    def evaluate(self) -> list[Use]:
        """Perplexity is measured: on the whole model, if it is in memory or has room there."""
        texts = self.work.texts
        assert texts is not None
        logits_bytes = min(texts.logits_bytes, 4 * texts.batch_tokens * self.shapes.vocabulary)
        logits = Use(work=logits_bytes * (2 + self.place.itemsize / 4)) + self.run(texts.batch_tokens)
        if self.place.streams and not self.work.texts_in_memory:
            return [weights + self.states(texts.tokens, 2) + logits for weights in (self.ends(self.head), self.layer())]
        num_bytes = self.bytes(self.shapes.parameters)
        whole = Use(weights=num_bytes, read=num_bytes) if self.place.streams else self.ends(self.head)
        return [whole + self.pruned() + logits]

    def _windows(self) -> Use:
        """The calibration windows in a walk; of a model on disk in files, with inputs and outputs of a layer."""
        files = self.place.streams and (self.work.metric.needs_statistics or not self.work.in_sequence)
        return self.states(self.work.tokens, 2 if files else 1, files)

    def _observed(self, states: Use, factors: Use, sets: int = 2) -> list[Use]:
        """The covariances of a layer are collected, and factorised."""
        present = self.layer() + states + self.comoments(sets)
        return [present + part for part in (self.run(self.work.batch_tokens, COMOMENT_BYTES), factors)]

    def _fitted(self, walk: SearchWalk, layer: int, in_float: int) -> float:
        """Return the bytes of the fitted projections of a layer, one for each trial and candidate.

        in_float: 1 while they are being made: those of one block are there in float32 as well.
        """
        blocks = zip(walk.fits(layer), self.shapes.layers[layer].blocks, strict=True)
        elements = [walk.kept * fits * block.output_parameters for fits, block in blocks]
        return self.bytes(sum(elements)) + 4 * in_float * max(elements)
