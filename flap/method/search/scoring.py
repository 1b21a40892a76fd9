"""The first step of structure=search, in the walk that scores: each block alone loses its lowest-scored units.

The scores of a layer say which units its trials remove, and its covariances are there for both; so one walk does.
"""

from dataclasses import replace
from itertools import chain, islice

from flap.method.allocation import Budget, LayerPlan
from flap.method.calibration import Calibration, LayerStatistics
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
    notes = Notes(SCORES, work)
    counts = [sum(map(len, search.removals(units))) for units in budget.layers]

    def trials(i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
        """Return layer i in each trial of all layers: pruned in its own trials, dense in the others."""
        [scores] = _scored(metric, divergence.calibration, notes, i, observed).layers
        whole = LayerPlan(*(tuple(range(len(score_U))) for score_U in scores))
        of_layers = [[whole] * count for count in counts]
        of_layers[i] = search.trials(scores, budget.layers[i])
        return list(chain.from_iterable(of_layers))

    covariance = metric.needs_covariance or divergence.compensation.needs_covariance
    measured = iter(divergence(trials, search.tokens, covariance, work))
    scores = Scores.joined(map(notes.read, range(len(counts))))
    return replace(scores, divergences=tuple(tuple(islice(measured, n)) for n in counts))


def _scored(
    metric: Metric,
    calibration: Calibration,
    notes: Notes[Scores],
    i: int,
    observed: LayerStatistics | None,
) -> Scores:
    """Return the scores of layer i, which an interrupted walk may have noted."""
    if observed is None and i in notes:
        return notes.read(i)
    if not metric.needs_covariance:  # plain statistics are those that other structures score with
        observed = calibration.layers[i] if calibration.layers else None
    notes.write(i, scores_of_layer(metric, calibration.model.adapter.blocks(i), observed))
    return notes.read(i)
