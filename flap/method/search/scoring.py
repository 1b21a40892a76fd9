"""The first step of structure=search: compute scores and the divergences of trials.

In a trial, one block, which is the attention or the MLP of a layer, loses its lowest-scored units
(heads, neurons or experts). The divergence of a trial says how far the predictions of this pruned
model are from the dense model's predictions (`PlanDivergence`). Scores and trials may both need the
covariances of a layer's activations. So layers are scored and trials are measured in the same pass
over the layers.
"""

from dataclasses import replace
from itertools import islice

from flap.method.allocation import Budget, LayerPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.importance import SCORES, Metric, Scores, scores_of_layer
from flap.method.search.divergence import PlanDivergence
from flap.method.search.search import Search
from flap.storage import Notes, WorkFolder


def score_and_try(
    metric: Metric, search: Search, budget: Budget, divergence: PlanDivergence, work: WorkFolder
) -> Scores:
    """Return the scores of all units, with the divergence of each trial in nats per token.

    An interrupted pass over the layers resumes from the working directory `work`. If the metric
    needs no statistics, the pass starts again at the first layer instead. The reason is that the
    scores of such a metric may be random numbers from one generator for all layers, and a resumed
    run must get the same scores as an uninterrupted run.

    Raises:
        ValueError: activations, scores or predictions are not finite.
    """
    if not metric.needs_statistics:
        work.clear()
    notes = Notes(SCORES, work)
    counts = [sum(map(len, search.removals(units))) for units in budget.layers]

    def plans_of_layer(i: int, observed: LayerStatistics | None) -> list[LayerPlan]:
        """Return, for every trial of the model, the units of layer i that stay.

        Layer i is pruned in the trials of its two blocks, and stays dense in all other trials.
        """
        _note_scores(metric, divergence.calibration, notes, i, observed)
        [scores] = notes.read(i).layers
        dense = LayerPlan(*(tuple(range(len(score_U))) for score_U in scores))
        plans: list[LayerPlan] = []
        for k, count in enumerate(counts):
            plans += search.trials(scores, budget.layers[i]) if k == i else [dense] * count
        return plans

    covariance = metric.needs_covariance or divergence.compensation.needs_covariance
    measured = iter(divergence(plans_of_layer, search.tokens, covariance, work))
    by_layer = tuple(tuple(islice(measured, count)) for count in counts)
    scores = Scores.joined(map(notes.read, range(len(counts))))
    return replace(scores, divergences=by_layer)


def _note_scores(
    metric: Metric,
    calibration: Calibration,
    notes: Notes[Scores],
    i: int,
    observed: LayerStatistics | None,
) -> None:
    """Score layer i and store the scores, unless an interrupted run has already stored them."""
    if observed is None and i in notes:
        return
    if not metric.needs_covariance:
        # use the statistics that were collected before this pass, so that the scores are the same
        # as with all other structures
        observed = calibration.layers[i] if calibration.layers else None
    notes.write(i, scores_of_layer(metric, calibration.model.adapter.blocks(i), observed))
