"""The stage of `vocabulary=trim`: from there on, a run has one model and one tokenizer, without the removed tokens."""

import math
from copy import deepcopy
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from flap.evaluation import prepare_tasks
from flap.evaluation.left_out import without_read
from flap.method.vocabulary import KeptTokens, Tokens, Trimmed
from flap.method.vocabulary.rows import cut_rows
from flap.method.vocabulary.source import TrimmedSource
from flap.models import LoadedSource, ModelSource, PlacedModel, adapt
from flap.runs.choices import check_budget
from flap.runs.run import Run
from flap.runs.texts import documents_read, read_texts


def trim(run: Run, model: PlacedModel) -> tuple[Run, list[str], dict[str, float]]:
    """Choose the tokens that stay with the dense model, and cut its other rows in place.

    Returns the run with the trimmed model and tokenizer, the tokens that stay, and facts for the
    report.
    """
    assert run.choices.vocabulary is not None
    with run.timed("choose tokens"):
        texts = run.texts.get("vocabulary", run.texts.get("calibration"))
        assert texts is not None
        kept = run.choices.vocabulary.choose(run.source.tokenizer, model, texts)

    with run.timed("trim"):
        before = run.source.tokenizer
        trimmed = Trimmed.of(before, kept, model.adapter.vocab_size)
        cut_rows(model, trimmed.rows_K)
        if not isinstance(run.source, LoadedSource):
            after = _on(run, TrimmedSource(run.source, trimmed), before)
            return after, kept.names, trimmed.facts

        # the model and its tokenizer are the caller's, and change in place
        before = deepcopy(before)
        run.source.tokenizer._tokenizer = trimmed.tokenizer.backend_tokenizer
        source = LoadedSource(run.source.model, run.source.tokenizer)
        return _on(run, source, before), kept.names, trimmed.facts


def trimmed_run(run: Run, tokens: list[str]) -> Run:
    """Return the run with the model and the tokenizer that an earlier start of it has trimmed to these tokens."""
    before = run.source.tokenizer
    rows = adapt(run.source.skeleton()).vocab_size
    kept = KeptTokens(Tokens.of(before, rows), tokens, math.nan)
    trimmed = Trimmed.of(before, kept, rows)
    return _on(run, TrimmedSource(run.source, trimmed), before)


def _on(run: Run, source: ModelSource, before: PreTrainedTokenizerBase) -> Run:
    """Return the run on another source: with its texts, tasks and budget. before: the tokenizer of the dense model."""
    choices = replace(run.choices, vocabulary=None)
    tokenizer = source.tokenizer
    texts = read_texts(run.config, choices, tokenizer, source.max_length)
    for use in texts:
        for part in texts[use].to_write:
            text = run.texts[use].texts[part]
            if text is not None:  # the dense model has written it
                texts[use] = texts[use].written(part, text)

    if "vocabulary" in run.texts:  # tasks on this text are of its domain
        texts["vocabulary"] = run.texts["vocabulary"]

    adapter = adapt(source.skeleton(), choices.experts)
    tasks = prepare_tasks(choices.evaluators, tokenizer, source.max_length, before)
    return replace(
        run,
        source=source,
        choices=choices,
        texts=texts,
        budget=check_budget(adapter, choices, run.config, source),
        tasks=without_read(tasks, documents_read(texts)),
    )
