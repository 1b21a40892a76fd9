"""What the walk of a search takes, in the stage that scores."""

from flap.compression.linear import fit_bytes
from flap.runs.ledger import Cost, Memory
from flap.runs.workload import Workload
from flap.search.cost import SearchWalk


def cost_of_search(run: Workload, walk: SearchWalk, scoring: Memory, scored: bool) -> Cost:
    """Return what the walk takes. scoring: of OBS; scored: by it, with covariances."""
    observed, place = scored or run.choices.compensation.needs_covariance, run.place
    tokens = run.tokens * observed
    once = run.observe_operations(covariance=True) if observed else 0.0
    return Cost(
        _moments(run, walk, observed, scoring),
        1,
        tokens + walk.tokens * walk.mean_streams,
        once + run.search_operations(walk),
        files=place.states(walk.most_streams * walk.tokens + 2 * tokens, 1).streams,
    )


def _moments(run: Workload, walk: SearchWalk, observed: bool, scoring: Memory) -> list[Memory]:
    """Return the moments of a walk: trial fits, trial layers and their streams, and predictions at the end."""
    place, shapes = run.place, run.place.shapes
    itemsize = place.dtype.itemsize
    fitting, fitted = (Memory(work=walk.fitted_bytes(shapes, itemsize, in_float)) for in_float in (True, False))
    before, streams = (place.states(walk.most_streams * walk.tokens, share) for share in (0.5, 1))
    copied = place.layer() + Memory(work=place.bytes(shapes.largest_layer)) + fitted + place.stacking()
    trying = copied + place.run(walk.tokens) + streams
    end = place.ends() + before + Memory(work=walk.logits_bytes(run.seq_len, shapes.vocabulary, itemsize))
    if not observed:
        return [place.layer() + place.plain() + fitting + before, trying, end]
    states = place.states(run.tokens, 2) + before
    factors = place.factors(lambda i, o: fit_bytes(i, o, trial=True)) + fitting
    moments = [use for part in (factors, scoring) for use in place.observed(states, part, run.batch_tokens)]
    return [*moments, trying + place.comoments(), end]
