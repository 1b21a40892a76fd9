"""What the walks of a search take, in the stages that score and allocate."""

from collections.abc import Sequence

from flap.compression.linear import fit_bytes
from flap.runs.forecast import Forecast
from flap.runs.ledger import Cost, Memory
from flap.search.cost import SearchWalk


def cost_of_search(run: Forecast, walks: Sequence[SearchWalk], scoring: Memory, scored: bool = False) -> Cost:
    """Return what the walks of a stage take. scoring: of OBS; scored: it scores in the same walk."""
    observed, place = scored or run.choices.compensation.needs_covariance, run.place
    tokens = run.tokens * observed
    once = run.observe_operations(covariance=True) if observed else 0.0
    files = max(walk.most_streams * walk.tokens for walk in walks) + 2 * tokens
    return Cost(
        [use for walk in walks for use in _moments(run, walk, observed, scoring)],
        len(walks),
        sum(tokens + walk.tokens * walk.mean_streams for walk in walks),
        sum(once + run.search_operations(walk) for walk in walks),
        files=place.states(files, 1).streams,
    )


def _moments(run: Forecast, walk: SearchWalk, observed: bool, scoring: Memory) -> list[Memory]:
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
    states = place.states(run.tokens, 2) + before + run.across()
    factors = place.factors(lambda i, o: fit_bytes(i, o, trial=True)) + fitting
    moments = [use for part in (factors, scoring) for use in place.observed(states, part, run.batch_tokens)]
    return [*moments, trying + place.comoments(), end]
