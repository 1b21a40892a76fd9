"""The stages that rank the tokens of the dense model, and that trim the vocabulary, after compression."""

from dataclasses import replace

from flap.config import require
from flap.evaluation import Divergence, prepare_suite
from flap.models import ModelAdapter, ModelSource, PlacedModel
from flap.runs.choices import Choices
from flap.runs.ledger import stage
from flap.runs.model_sizes import count_trimmed
from flap.runs.run import Run
from flap.storage import WorkFolder
from flap.vocabulary import Tokens, Trimmed
from flap.vocabulary.rows import cut_rows, named_ids


def check_vocabulary(choices: Choices, source: ModelSource, adapter: ModelAdapter) -> None:
    """Check that tokens can be removed from this model.

    Raises:
        ValueError: they cannot.
    """
    if choices.vocabulary is None:
        return
    tokens = Tokens.of(source.tokenizer, adapter.vocab_size, named_ids(adapter.model))
    choices.vocabulary.check(tokens)
    compared = any(isinstance(one, Divergence) for one in choices.evaluators)
    allowed = "none with vocabulary=trim: predictions of two tokenizers are of other tokens; eval=perplexity has bits"
    require(not compared, "eval", "divergence", allowed)
    words, fewest = getattr(choices.recovery, "words", None), choices.vocabulary.named or len(tokens.stay)
    allowed = f"1 to {fewest - 1}, as {fewest} tokens stay at least; more with a larger vocabulary.size"
    require(words is None or words < fewest, "recover.words", words, allowed)


@stage("rank tokens")
def rank_tokens(run: Run, work: WorkFolder, model: PlacedModel) -> None:
    """Rank the tokens by how often they are in texts, and the dense model expects them there."""
    assert run.choices.vocabulary is not None
    texts = run.texts.get("vocabulary", run.texts.get("calibration"))
    assert texts is not None
    run.ranking = run.choices.vocabulary.rank(run.source.tokenizer, model, texts)
    run.kept_tokens = run.choices.vocabulary.number(run.ranking)


@stage("trim")
def trim(run: Run, work: WorkFolder, model: PlacedModel) -> None:
    """Remove the rows of the removed tokens; what comes after reads its texts with the new tokenizer."""
    assert run.ranking is not None and run.kept_tokens is not None
    before = run.source.tokenizer
    trimmed = Trimmed.of(before, run.ranking, run.kept_tokens, model.adapter.vocab_size)
    cut_rows(model, trimmed.rows_K)
    run.report.vocabulary = trimmed.facts
    count_trimmed(run.report, model.adapter)
    run.trimmed = trimmed
    suite = prepare_suite(run.choices.evaluators, trimmed.tokenizer, run.source.max_length, None, before)
    run.suite = replace(suite, results=run.suite.results)
    if run.source.loaded:  # the tokenizer is the caller's, as the model is
        trimmed.give_to(before)
