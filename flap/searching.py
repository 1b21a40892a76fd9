"""structure=search: measure what each block's loss does, then move budget around the plan as long as that helps."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from flap.allocation import PruningPlan, Search, Trial, corrected, neighbours
from flap.cache import Kind, as_json, digest
from flap.calibration import LayerStatistics, split_windows
from flap.compression import Divergence, Stack
from flap.importance import Scores
from flap.job import Job
from flap.progress import progress

log = logging.getLogger(__name__)

# What one layer's trials do to the predictions, in nats a token, in the order of the trials.
DIVERGENCES: Kind[list[float]] = as_json("divergences")
VERSION = 1  # of what is measured, and of the fits that it is measured with: raise it when they change
STRENGTHS = (1.0, 0.5, 0.25)  # of a round's correction: the first that lowers the divergence is taken

LayersKnown = Iterable[LayerStatistics | None]


@dataclass(frozen=True)
class Found:
    """A plan, the nats per parameter that it was ranked by, and the whole model that it makes."""

    plan: PruningPlan
    nats: Scores
    stack: Stack


def search(job: Job, structure: Search, scores: Scores, statistics: LayersKnown) -> PruningPlan:
    """The plan of the lowest divergence found; every layer's measurements are kept, so a killed search goes on."""
    assert job.calibration is not None
    _, held_out_NT = split_windows(job.calibration.tokens_NT)
    divergence = Divergence(job.adapter, held_out_NT[: math.ceil(structure.tokens / held_out_NT.shape[1])])
    layers = range(len(job.adapter.layers))
    measured = _measured(job, divergence, [structure.trials(scores, i) for i in layers], statistics)
    found = _found(job, structure, divergence, structure.in_nats(scores, measured, job.budget), statistics)
    for number in range(1, structure.rounds + 1):
        job.report.search_nats.append(found.stack.nats)
        log.info("search: %.4f nats a token before round %d", found.stack.nats, number)
        better = _round(job, structure, divergence, scores, found, statistics)
        if better is None:
            return found.plan
        found = better
    job.report.search_nats.append(found.stack.nats)
    log.info("search: %.4f nats a token at the end", found.stack.nats)
    return found.plan


def _round(
    job: Job, structure: Search, divergence: Divergence, scores: Scores, found: Found, statistics: LayersKnown
) -> Found | None:
    """A plan that moves as measurements around this one say, and diverges less; None where none was found."""
    trials = [neighbours(structure, scores, found.plan, i) for i in range(len(job.adapter.layers))]
    measured = _measured(job, divergence, trials, statistics, found)
    for strength in STRENGTHS:
        nats = corrected(found.nats, found.plan, found.stack.nats, trials, measured, job.budget, strength)
        moved = _found(job, structure, divergence, nats, statistics)
        if moved.stack.nats < found.stack.nats:
            return moved
        del moved  # a whole model, before the next one is made
    return None


def _found(job: Job, structure: Search, divergence: Divergence, nats: Scores, statistics: LayersKnown) -> Found:
    plan = structure.allocate(nats, job.budget)
    return Found(plan, nats, divergence.stack(plan, job.stages.compensation, statistics))


def _measured(
    job: Job,
    divergence: Divergence,
    trials: Sequence[Sequence[Trial]],
    statistics: LayersKnown,
    found: Found | None = None,
) -> list[list[float]]:
    """The divergences of each layer's trials, the others being dense or as found. Those known are not measured."""
    assert job.calibration is not None
    options = asdict(job.config)
    key = {
        **job.model_key,
        **job.calibration.key,
        "device": job.adapter.decoder.device.type,
        "search": VERSION,
        "windows": len(divergence.tokens_NT),
        "metric": options["metric"],
        "compensation": options["compensation"],
        "plan": digest(found.plan.to_dict()) if found else None,
    }
    known, measured = iter(statistics), []
    within = found.stack if found else None
    for i in progress(range(len(trials)), "search"):
        layer, entry = next(known), {**key, "layer": i, "trials": digest([asdict(trial) for trial in trials[i]])}
        measure = partial(divergence.of_each, i, trials[i], job.stages.compensation, layer, within)
        measured.append(job.cache.get(DIVERGENCES, entry, measure)[0])
        del layer, measure  # with covariances, before the next ones are read
    return measured
