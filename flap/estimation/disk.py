"""What a run has on disk: hidden states and changed layers below `cache_dir`, and the checkpoint."""

from dataclasses import dataclass

from flap.estimation.parts import Parts
from flap.estimation.searching import search_walks, widest

AFTER_COMPRESSION = ("compress", "prune", "recover", "save", "evaluate")


@dataclass(frozen=True)
class Disk(Parts):
    """The bytes on disk at their most within each stage."""

    def in_cache(self, stage: str) -> float:
        """Return the bytes below `cache_dir` within a stage."""
        changed = self.kept_layers if self.place.streams and stage in AFTER_COMPRESSION else 0
        return self._offloaded + self._hidden(stage) + changed + (self._training if stage == "recover" else 0)

    def checkpoint(self, stage: str) -> float:
        """Return the bytes of the checkpoint and of a GGUF file, once they are there."""
        if stage not in ("save", "evaluate") or not self.work.saves:
            return 0
        parameters = self.shapes.parameters - self.work.ratio * self.shapes.prunable
        return parameters * (self.place.itemsize + self.work.gguf_bytes)

    @property
    def _training(self) -> float:
        """What is trained: its best state, and two checkpoints with AdamW's moments while one follows the other."""
        assert self.work.training is not None
        return self.work.training.parameters * 4 * (1 + 2 * 3)

    @property
    def _offloaded(self) -> float:
        """The weights that placement=auto has no memory for."""
        limit = self.place.device_limit + self.place.host_limit
        return max(0.0, self.bytes(self.shapes.parameters) - limit) if not self.place.streams else 0.0

    def _hidden(self, stage: str) -> float:
        """Return the hidden states in files: inputs and outputs of a layer, and what the calibration has left."""
        windows = self.states(self.work.tokens, 1).streams if self.place.streams else 0
        if stage in ("load", "write"):
            return 0
        if stage == "calibrate" or (stage == "prune" and not self.work.needs_covariance):
            return 2 * windows
        left = windows if self.work.plain_statistics else 0
        if stage in ("score", "allocate"):
            return left + self._search(stage)
        texts = self.work.texts
        streamed = stage == "evaluate" and texts is not None and not self.work.texts_in_memory and self.place.streams
        return left + (self.states(texts.tokens, 2).streams if streamed and texts is not None else 0)

    def _search(self, stage: str) -> float:
        """Return the hidden states of all streams of a search, and those of the windows that covariances are of."""
        walk = widest(search_walks(stage, self.work, self.shapes))
        if walk is None:
            return 0
        fitted = 2 * self.work.tokens if self.work.observed(stage) else 0
        return self.states(walk.most_streams * walk.tokens + fitted, 1).streams
