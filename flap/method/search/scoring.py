"""The first step of structure=search, in the walk that scores: each block alone loses its lowest-scored units.

The scores of a layer say which units its trials remove, and its covariances are there for both; so one walk does.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice

from flap.method.allocation import Budget, LayerPlan
from flap.method.calibration import LayerStatistics
from flap.method.importance import SCORES, Metric, Scores, scores_of_layer
from flap.method.search.divergence import PlanDivergence
from flap.method.search.search import Search
from flap.storage import Notes, WorkFolder


def score_and_try(
    metric: Metric, search: Search, budget: Budget, divergence: PlanDivergence, work: WorkFolder
) -> Scores:
    """Return the scores of all units with the divergences of each layer's trials, in nats a token, in one walk.

    An interrupted walk resumes from `work`; with scores that need no statistics it begins anew, because random ones
    would be drawn in another order.

    Raises:
        ValueError: activations, scores or predictions are not finite.
    """
    if not metric.needs_statistics:
        work.clear()
    trials = _Trials(metric, search, budget, divergence, work)
    covariance = metric.needs_covariance or divergence.compensation.needs_covariance
    measured = iter(divergence(trials, search.tokens, covariance, work))
    scores = Scores.joined(map(trials.notes.read, range(len(trials.counts))))
    return replace(scores, divergences=tuple(tuple(islice(measured, n)) for n in trials.counts))


@dataclass
class _Trials:
    """The trials of all layers, as plans that are made while a walk comes to each layer and scores it."""

    metric: Metric
    search: Search
    budget: Budget
    divergence: PlanDivergence
    work: WorkFolder

    @cached_property
    def notes(self) -> Notes[Scores]:
        """The scores of each layer, which an interrupted walk may have left."""
        return Notes(SCORES, self.work)

    @cached_property
    def counts(self) -> list[int]:
        """How many trials each layer has."""
        return [sum(map(len, self.search.removals(prices))) for prices in self.budget.layers]

    def __call__(self, i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
        """Return layer i in each trial of all layers: pruned in its own trials, dense in the others."""
        [scores] = self._scored(i, observed).layers
        whole = LayerPlan(*(tuple(range(len(score_U))) for score_U in scores))
        of_layers = [[whole] * count for count in self.counts]
        of_layers[i] = self.search.trials(scores, self.budget.layers[i])
        return list(chain.from_iterable(of_layers))

    def _scored(self, i: int, observed: LayerStatistics | None) -> Scores:
        """Return the scores of layer i, which an interrupted walk may have written."""
        if observed is None and i in self.notes:
            return self.notes.read(i)
        calibration = self.divergence.calibration
        if not self.metric.needs_covariance:  # plain statistics are those that other structures score with
            observed = calibration.layers[i] if calibration.layers else None
        self.notes.write(i, scores_of_layer(self.metric, calibration.model.adapter.blocks(i), observed))
        return self.notes.read(i)
