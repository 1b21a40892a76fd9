"""The first step of structure=search, in the walk that scores: each block alone loses its lowest-scored units.

The scores of a layer say which units its trials remove, and its covariances are there for both; so one walk does.
"""

from dataclasses import dataclass, field, replace
from itertools import chain, islice

from flap.allocation import Budget, LayerPlan, PruningPlan, Search
from flap.calibration import LayerStatistics
from flap.compression.divergence import Divergence, dense_plan
from flap.importance import Metric, Scores, read_scores, scores_of_layer, write_scores


def score_and_try(metric: Metric, search: Search, budget: Budget, divergence: Divergence) -> Scores:
    """Return the scores of all units with the divergences of each layer's trials, in nats a token, in one walk.

    An interrupted walk resumes from the folder of `divergence`, but for scores that need no statistics: random ones
    would be drawn again.

    Raises:
        ValueError: activations, scores or predictions are not finite.
    """
    if not metric.needs_statistics:
        divergence = replace(divergence, folder=None)
    trials = _Trials(metric, search, budget, divergence, dense_plan(divergence.calibration.model))
    covariance = metric.needs_covariance or divergence.compensation.needs_covariance
    measured = iter(divergence.along(trials, search.tokens, covariance, "score"))
    return replace(Scores.joined(trials.scores), divergences=tuple(tuple(islice(measured, n)) for n in trials.counts))


@dataclass
class _Trials:
    """The trials of all layers, as plans that are made while a walk comes to each layer and scores it."""

    metric: Metric
    search: Search
    budget: Budget
    divergence: Divergence
    dense: PruningPlan
    scores: list[Scores] = field(default_factory=list)

    @property
    def counts(self) -> list[int]:
        """How many trials each layer has."""
        return [sum(map(len, self.search.removals(prices))) for prices in self.budget.layers]

    def __call__(self, i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
        """Return layer i of each trial: its own trials, and as it is in those of other layers."""
        self.scores.append(self._scored(i, observed))
        [scores], whole = self.scores[i].layers, self.dense.layers[i]
        of_layers = [[whole] * count for count in self.counts]
        of_layers[i] = [trial.plan for trial in self.search.trials(scores, self.budget.layers[i])]
        return list(chain.from_iterable(of_layers))

    def _scored(self, i: int, observed: LayerStatistics | None) -> Scores:
        """Return the scores of layer i, which an interrupted walk may have written."""
        calibration, folder = self.divergence.calibration, self.divergence.folder
        file = folder and folder / f"scores-{i}.safetensors"
        if observed is None and file is not None and file.exists():
            return read_scores(file)
        known = observed if self.metric.needs_covariance else calibration.layers[i] if calibration.layers else None
        scores = scores_of_layer(self.metric, calibration.model.adapter.blocks(i), known)
        if file is not None:
            write_scores(scores, file)
        return scores
