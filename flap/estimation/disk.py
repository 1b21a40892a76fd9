"""What a run has on disk: hidden states and changed layers below `cache_dir`, and the checkpoint."""

from dataclasses import dataclass

from flap.estimation.parts import Parts
from flap.search.cost import widest

AFTER_COMPRESSION = ("compress", "prune", "recover", "save", "evaluate")
# The stages with hidden states in files, as they follow one another; a run has either "prune" or those in its place.
ORDER = ("calibrate", "score", "allocate", *AFTER_COMPRESSION)


@dataclass(frozen=True)
class Disk(Parts):
    """The bytes on disk at their most within each stage."""

    def in_cache(self, stage: str) -> float:
        """Return the bytes below `cache_dir` within a stage."""
        changed = self.kept_layers if self.place.streams and stage in AFTER_COMPRESSION else 0
        return self._offloaded + self._hidden(stage) + changed + (self._training if stage == "recover" else 0)

    def checkpoint(self, stage: str) -> float:
        """Return the bytes of the checkpoint and of a GGUF file, once they are there.

        It shares the files of changed layers where `Place.links` says so.
        """
        if stage not in ("save", "evaluate") or not self.work.saves:
            return 0
        shared = self.kept_layers if self.place.links else 0
        return self._pruned_parameters * (self.place.itemsize + self.work.gguf_bytes) - shared

    @property
    def _training(self) -> float:
        """What is trained: its best state, and two checkpoints with AdamW's moments while one follows the other.

        Several processes also read the compressed model from there.
        """
        training = self.work.training
        assert training is not None
        copy = self.bytes(self._pruned_parameters) if training.processes > 1 else 0
        return training.parameters * 4 * (1 + 2 * 3) + copy

    @property
    def _pruned_parameters(self) -> float:
        return self.shapes.parameters - self.work.ratio * self.shapes.prunable

    @property
    def _offloaded(self) -> float:
        """The weights that placement=auto has no memory for."""
        limit = self.place.device_limit + self.place.host_limit
        return max(0.0, self.bytes(self.shapes.parameters) - limit) if not self.place.streams else 0.0

    def _hidden(self, stage: str) -> float:
        """Return the hidden states in files: inputs and outputs of a layer, and what earlier walks have left."""
        if stage in ("load", "write"):
            return 0
        windows = self.states(self.work.tokens, 1).streams if self.place.streams else 0
        walks = self._walks
        left = windows * sum(ORDER.index(walk) < ORDER.index(stage) for walk in walks)
        if stage in walks:
            return left + 2 * windows
        if stage in ("score", "allocate"):
            return left + self._search(stage)
        texts = self.work.texts
        streamed = stage == "evaluate" and texts is not None and not self.work.texts_in_memory and self.place.streams
        return left + (self.states(texts.tokens, 2).streams if streamed and texts is not None else 0)

    @property
    def _walks(self) -> list[str]:
        """The stages in which the windows walk, from whose files a killed run goes on; a search deletes its own."""
        metric, searches = self.work.metric, bool(self.work.walks("score", self.shapes))
        scores = metric.needs_covariance and not searches and not self.work.in_sequence
        walks = {
            "calibrate": self.work.plain_statistics,
            "score": scores,
            "compress": self.work.compensation.needs_covariance and not self.work.in_sequence,
            "prune": self.work.in_sequence and metric.needs_statistics,
        }
        return [stage for stage, there in walks.items() if there]

    def _search(self, stage: str) -> float:
        """Return the hidden states of all streams of a search, and those of the windows that covariances are of."""
        walk = widest(self.work.walks(stage, self.shapes))
        if walk is None:
            return 0
        fitted = 2 * self.work.tokens if self.work.observed(stage) else 0
        return self.states(walk.most_streams * walk.tokens + fitted, 1).streams
