"""What a search takes: its walk, in the stage that scores, and the exchange of units after it."""

from flap.compression.linear import fit_bytes
from flap.runs.ledger import Cost, Memory
from flap.runs.workload import Workload
from flap.search.cost import SearchWalk
from flap.search.divergence import TOGETHER


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
    states = place.states(run.tokens, 2) + before + run.across()
    factors = place.factors(lambda i, o: fit_bytes(i, o, trial=True)) + fitting
    moments = [use for part in (factors, scoring) for use in place.observed(states, part, run.batch_tokens)]
    return [*moments, trying + place.comoments(), end]


def cost_of_exchange(run: Workload, *inputs: None) -> Cost:
    """Return what an exchange takes: a walk, and for each token two forward and two backward passes.

    The covariances of all blocks, and their maps, are in memory at once, and a batch's activations in all layers.
    """
    place, shapes, steps = run.place, run.place.shapes, run.choices.structure.exchange
    squares = [block.channels**2 for block in shapes.blocks]
    outputs = sum(block.output_parameters for block in shapes.blocks)
    maps = Memory(work=4 * sum(squares) + place.bytes(sum(squares) + 2 * outputs))
    running = Memory(work=len(shapes.layers) * place.run(max(TOGETHER, run.seq_len)).work)
    collecting = place.observed(maps + place.states(run.tokens, 1), Memory(), run.batch_tokens)
    fitting = place.layer() + maps + Memory(work=4 * 4 * max(squares))
    operations = run.observe_operations(covariance=True) + 4 * run.run_operations(run.tokens, head=True)
    operations += 2 * run.tokens * sum(squares)  # residuals
    operations += (steps + 1) * run.block_operations(lambda i, o: 3 * i**3 + 4 * o * i**2)
    return Cost([*collecting, fitting, place.ends() + maps + running], 5, 5 * run.tokens, operations)
