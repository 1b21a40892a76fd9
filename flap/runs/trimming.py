"""The stage that trims the vocabulary (`vocabulary=trim`), and an estimate of its result.

After this stage, the run has a model and a tokenizer without the removed tokens. The budget is the
number of parameters that pruning removes from this model. A target is an upper limit on a size of
the pruned model, such as its bytes.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from flap.config import TargetConfig, require
from flap.data import Windows
from flap.evaluation import prepare_tasks
from flap.evaluation.left_out import without_read
from flap.method.allocation import Bound, Budget
from flap.method.calibration.answers import without_answers
from flap.method.vocabulary import KeptTokens, Tokens, Trim, Trimmed
from flap.method.vocabulary.rows import cut_rows, cut_rows_of, named_ids
from flap.method.vocabulary.source import TrimmedSource
from flap.models import (
    LoadedSource,
    ModelAdapter,
    ModelSource,
    PlacedModel,
    adapt,
    count_parameters,
)
from flap.runs.choices import Choices, bounds, check_budget
from flap.runs.run import Run
from flap.runs.texts import counted_in, documents_read, read_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trimming:
    """The size of the vocabulary before and after trimming, and the size of the trimmed model."""

    before: int  # number of tokens in the vocabulary of the dense model
    after: int  # number of tokens that stay
    parameters: int  # number of parameters of the model after trimming
    # "" if `after` and `parameters` are exact; "about " or "at most " if tokens will also be
    # counted in texts that the model has not generated yet
    roughly: str = ""

    def lines(self, budget: Budget) -> Iterator[str]:
        """Yield lines with the numbers of tokens and parameters that stay after trimming.

        The last line says how many parameters pruning removes from the trimmed model.

        budget: the budget of the trimmed model.
        """
        yield (
            f"vocabulary: {self.roughly}{self.after:,} of {self.before:,} tokens stay, "
            f"in a model of {self.roughly}{self.parameters:,} parameters"
        )
        if budget.to_remove:
            yield (
                f"units: {self.roughly}{budget.to_remove:,.0f} parameters, "
                f"{budget.ratio:.1%} of those "
                "that can be pruned, are removed after that"
            )
        elif budget.bounds:
            yield "units: none is removed, as trimming alone reaches the target"
        else:
            yield "units: none is removed"


def budget_after_trimming(
    choices: Choices,
    source: ModelSource,
    adapter: ModelAdapter,
    texts: Mapping[str, Windows],
) -> tuple[Budget, Trimming | None]:
    """Return the budget of the model after trimming, and the sizes before and after trimming.

    The sizes are None if the vocabulary is not trimmed, or if the caller has loaded the model. The
    weights of a loaded model are not trimmed yet, so the targets are checked later, after trimming.

    No weight is read. If `vocabulary.size` is not set, and the model has not generated all texts or
    answers in which tokens are counted, the number of tokens that stay is an estimate. For this
    estimate, tokens are counted in the prompts and in the answers that the text files contain.
    Texts that the model generates without prompts are not counted.

    Raises:
        ValueError: the ratio, a target or another option does not fit this model, or no token of
            the vocabulary can be removed.
    """
    if choices.vocabulary is None:
        return check_budget(adapter, choices, source), None

    _check_embeddings(adapter)
    rows = adapter.vocab_size
    tokens = Tokens.of(source.tokenizer, rows, named_ids(adapter.model))
    choices.vocabulary.check(tokens)
    if source.loaded:
        without_target = replace(choices, target=TargetConfig())
        return check_budget(adapter, without_target, source), None

    room = _room(adapter, bounds(adapter, choices, source))
    after, roughly = _tokens_left(choices.vocabulary, tokens, counted_in(texts), rows, room)
    model = source.skeleton()
    cut_rows_of(model, adapt(model), torch.arange(after))
    smaller = adapt(model, choices.experts)
    trimming = Trimming(rows, after, count_parameters(smaller.model), roughly)
    return check_budget(smaller, choices, source), trimming


def _check_embeddings(adapter: ModelAdapter) -> None:
    allowed = "none for this model, which has embeddings of tokens for each layer, too"
    of_layers = getattr(adapter.config, "hidden_size_per_layer_input", 0)
    require(not of_layers, "vocabulary", "trim", allowed)


def _room(adapter: ModelAdapter, targets: Iterable[Bound]) -> int:
    """Return the largest vocabulary size with which the model meets the targets without pruning.

    The result is 0 if no target limits parameters, or if trimming alone cannot meet the targets.
    """
    embedding = adapter.model.get_input_embeddings().weight
    head = adapter.model.get_output_embeddings()
    per_token: int = embedding.shape[1]
    if head.weight is not embedding:
        per_token += head.weight.shape[1]
    if head.bias is not None:
        per_token += 1

    counting = [bound for bound in targets if bound.size]
    if not counting:
        return 0
    to_remove = max(math.ceil(bound.excess / (bound.size * per_token)) for bound in counting)
    return max(0, adapter.vocab_size - to_remove)


def _tokens_left(
    vocabulary: Trim, tokens: Tokens, texts: Windows, rows: int, room: int
) -> tuple[int, str]:
    """Return how many tokens stay, and a text that says how exact this number is.

    The text is "" for an exact number, else "about " or "at most ".
    """
    if vocabulary.size is not None or not texts.to_write:
        return vocabulary.number(tokens, texts, rows, room), ""
    prompts = without_answers(texts)
    if not prompts.existing:
        return rows, "at most "
    return vocabulary.number(tokens, prompts, rows, room), "about "


def trim(run: Run, model: PlacedModel) -> tuple[Run, list[str], dict[str, float]]:
    """Choose the tokens that stay, and remove the embedding rows of all other tokens in place.

    Return a copy of the run with the trimmed model and tokenizer, the tokens that stay, and facts
    about the trimming for the report (`Trimmed.facts`).
    """
    assert run.choices.vocabulary is not None
    with run.timed("choose tokens"):
        targets = bounds(model.adapter, run.choices, run.source)
        room = _room(model.adapter, targets)
        kept = run.choices.vocabulary.choose(model, counted_in(run.texts), room)

    with run.timed("trim"):
        before = run.source.tokenizer
        rows = model.adapter.vocab_size
        trimmed = Trimmed.of(before, kept, rows)
        cut_rows(model, trimmed.rows_K)
        source: ModelSource = TrimmedSource(run.source, trimmed)
        if isinstance(run.source, LoadedSource):
            # the caller's model and tokenizer change in place, so keep a copy of the tokenizer
            before = deepcopy(before)
            run.source.tokenizer._tokenizer = trimmed.tokenizer.backend_tokenizer
            source = LoadedSource(run.source.model, run.source.tokenizer)
        smaller = _on(run, source, before)

    parameters = count_parameters(model.model)
    for line in Trimming(rows, len(kept.names), parameters).lines(smaller.budget):
        log.info("%s", line)
    return smaller, kept.names, trimmed.facts


def trimmed_run(run: Run, tokens: list[str]) -> Run:
    """Return a copy of the run with the trimmed vocabulary that an earlier invocation has chosen.

    tokens: the tokens of the trimmed vocabulary.
    """
    before = run.source.tokenizer
    rows = adapt(run.source.skeleton()).vocab_size
    kept = KeptTokens(Tokens.of(before, rows), tokens, math.nan)
    trimmed = Trimmed.of(before, kept, rows)
    return _on(run, TrimmedSource(run.source, trimmed), before)


def _on(run: Run, source: ModelSource, before: PreTrainedTokenizerBase) -> Run:
    """Return a copy of the run with the trimmed model, and with texts, tasks and a budget for it.

    source: the trimmed model.
    before: the tokenizer of the dense model.
    """
    choices = replace(run.choices, vocabulary=None)
    texts = read_texts(choices, source)
    for use in texts:
        for part in texts[use].to_write:
            text = run.texts[use].texts[part]
            if text is not None:  # the dense model has generated this text
                texts[use] = texts[use].written(part, text)

    # keep the text in which tokens were counted, because the report shows the domain "calibration"
    # for tasks that measure the model on this text
    if "vocabulary" in run.texts:
        texts["vocabulary"] = run.texts["vocabulary"]

    adapter = adapt(source.skeleton(), choices.experts)
    tasks = prepare_tasks(choices.evaluators, source.tokenizer, source.max_length, before)
    return replace(
        run,
        source=source,
        choices=choices,
        texts=texts,
        budget=check_budget(adapter, choices, source),
        tasks=without_read(tasks, documents_read(texts)),
    )
