"""Estimate, from the shapes of the model, how much computation pruning takes.

The unit of the estimate is a forward pass of the dense model over the calibration tokens, without
the embeddings and the LM head. A block is the attention or the MLP of a layer. A search
(structure=search) makes trial prunings: each trial prunes one block, and the search measures how
much this changes the model's output. A compensation changes output projections to make up for the
removed units (heads, neurons or experts).
"""

from itertools import accumulate
from typing import NamedTuple

from flap.data import HELD_OUT
from flap.method.allocation import Budget
from flap.method.search.divergence import EVERY
from flap.models import Block, ModelAdapter
from flap.runs.choices import Choices

# The following constants were measured with SmolLM2-135M-Instruct (experiments/cost).
# The total cost of three stages, in forward passes: the calibration without covariances, the
# scoring, and the bias compensation.
PLAIN = 1.16
# a forward pass together with its backward pass costs as much as this many forward passes
BACKWARD = 3
# To compute scores or a least-squares fit, the covariance of C channels is factorised, and linear
# systems are solved with the factors. The scores of a block take FACTORISATION · C³
# multiply-accumulates. A least-squares fit takes as many if it is repeated with several ridge
# parameters. In a search, the fits for all trials of a block together take TRIAL · C³.
FACTORISATION = 6.0
TRIAL = 1.0


class PruningWork(NamedTuple):
    """The amount of computation that a run takes between loading and saving the model."""

    tokens: int = 0  # number of calibration tokens
    passes: float = 0.0  # number of forward passes over the calibration tokens
    positions: float = 0.0  # number of positions at which a search computes logits
    # number of float32 multiply-accumulates for covariances and their factorisations
    products: float = 0.0

    def forward_passes(self, adapter: ModelAdapter) -> float:
        """Return the number of forward passes that cost as many multiply-accumulates as pruning.

        The result is 0 if there are no calibration tokens.
        """
        if not self.tokens:
            return 0.0
        _, hidden_size, _ = block_sizes(adapter.attention(0))
        others = self.positions * adapter.vocab_size * hidden_size + self.products
        return self.passes + others / (self.tokens * sum(_layer_macs(adapter)))


def pruning_work(
    choices: Choices, adapter: ModelAdapter, budget: Budget, tokens: int
) -> PruningWork:
    """Estimate the computation that pruning takes.

    tokens: the number of calibration tokens of one process; 0 if the run needs no calibration.
    """
    if not tokens or choices.keep_everything(budget):
        return PruningWork(tokens)
    scored = choices.selection is not None and choices.selection.metric.needs_covariance
    fitted = choices.compensation.needs_covariance
    # if the compensation is a least-squares fit, a search also makes this fit for each trial
    tried = choices.search is not None and fitted

    # 1. forward passes over all windows
    if choices.in_sequence:
        passes = 2.0  # each layer runs once before it is pruned, and once afterwards
        walks = int(scored or fitted)
    else:
        passes = PLAIN if choices.read_plain_statistics else 0.0
        walks = int(scored or tried) + int(fitted)
        passes += walks + BACKWARD * choices.need_gradients

    # 2. covariances and their factorisations
    products = 0.0
    for i in range(len(adapter.layers)):
        for block in adapter.blocks(i):
            channels, _, experts = block_sizes(block)
            products += walks * tokens * block.num_chosen * channels**2 / 2
            factors = (scored + fitted) * FACTORISATION + tried * TRIAL
            products += factors * experts * channels**3

    # 3. the trials of a search
    measured, trials = _trials(choices, adapter, budget, tokens)
    passes += trials.passes * measured / tokens
    return PruningWork(tokens, passes, trials.streams * measured / EVERY, products)


class _Trials(NamedTuple):
    streams: int  # the number of trials plus one for the dense model; 0 without a search
    # Number of forward passes that the dense model and all trials take together. A trial may take
    # less than one forward pass, because the computation begins at the layer that the trial prunes.
    passes: float


def _trials(
    choices: Choices, adapter: ModelAdapter, budget: Budget, tokens: int
) -> tuple[int, _Trials]:
    """Return the number of tokens on which a search measures each trial, and the trials' cost."""
    search = choices.search
    if search is None:
        return 0, _Trials(0, 0.0)
    macs = _layer_macs(adapter)
    from_layer = list(accumulate(reversed(macs)))[::-1]
    streams = 1
    passes = 1.0
    for units, behind in zip(budget.layers, from_layer, strict=True):
        trials = sum(map(len, search.removals(units)))
        streams += trials
        passes += trials * behind / from_layer[0]
    return min(search.tokens, tokens // HELD_OUT), _Trials(streams, passes)


def _layer_macs(adapter: ModelAdapter) -> list[int]:
    """Return the multiply-accumulates per token of each layer.

    A layer takes one multiply-accumulate for each parameter that a token uses. A token does not use
    the parameters of experts to which it is not routed.
    """
    macs = []
    for i, layer in enumerate(adapter.layers):
        parameters = sum(one.numel() for one in layer.parameters())
        macs.append(parameters - adapter.mlp(i).idle)
    return macs


def block_sizes(block: Block) -> tuple[int, int, int]:
    """Return the numbers of input channels, output channels and experts of a block.

    The channels belong to the block's output projection. In a block with experts, only the channels
    of one expert's output projection are counted. A block without experts counts as one expert.
    """
    experts = len(block.members)
    return block.columns_UC.numel() // experts, int(block.output.weight.shape[0]), experts
