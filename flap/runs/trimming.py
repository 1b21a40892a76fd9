"""The stage that trims the vocabulary, after compression: all before it goes on with the old tokens."""

from dataclasses import replace

from flap.config import FlapConfig, require, targets
from flap.evaluation import Divergence, prepare_suite
from flap.models import ModelAdapter, ModelSource, PlacedModel
from flap.runs.choices import Choices
from flap.runs.ledger import Cost, stage
from flap.runs.model_sizes import count_trimmed
from flap.runs.run import Run
from flap.runs.workload import Workload
from flap.storage import WorkFolder
from flap.vocabulary import Tokens
from flap.vocabulary.rows import cut_rows


def check_vocabulary(config: FlapConfig, choices: Choices, source: ModelSource, adapter: ModelAdapter) -> None:
    """Check that tokens can leave this model.

    Raises:
        ValueError: they cannot.
    """
    if choices.vocabulary is None:
        return
    given = "none without the model's tokenizer; pass it to flap.prune, which then trims it, too"
    require(source.tokenizer is not None, "vocabulary", "trim", given)
    choices.vocabulary.check(Tokens.of(source.tokenizer, adapter.vocab_size))
    compared = any(isinstance(one, Divergence) for one in choices.evaluators)
    allowed = "none with vocabulary=trim: predictions of two tokenizers are of other tokens; eval=perplexity has bits"
    require(not compared, "eval", "divergence", allowed)
    sized = choices.vocabulary.size is not None or not targets(config.target)
    require(
        sized, "vocabulary.coverage", choices.vocabulary.coverage, "vocabulary.size with a target, known beforehand"
    )


def _cost_of_trimming(run: Workload, model: None) -> Cost:
    """Embedding and head are there twice."""
    return Cost([run.place.ends() + run.place.ends() + run.pruned])


@stage("trim", _cost_of_trimming)
def trim(run: Run, work: WorkFolder, model: PlacedModel) -> None:
    """Remove the rows of the tokens that leave; what comes after reads its texts with the new tokenizer."""
    assert run.choices.vocabulary is not None
    texts = run.texts.get("vocabulary", run.texts.get("calibration"))
    assert texts is not None
    run.trimmed = trimmed = run.choices.vocabulary.trim(run.source.tokenizer, model, texts)
    cut_rows(model, trimmed.rows_K)
    run.report.vocabulary = trimmed.facts
    count_trimmed(run.report, model.adapter)
    if "recovery" in run.texts:
        run.texts["recovery"] = replace(run.texts["recovery"], tokenizer=trimmed.tokenizer)
    before, length = run.source.tokenizer, run.source.max_length
    suite = prepare_suite(run.choices.evaluators, trimmed.tokenizer, length, None, before)
    run.suite = replace(suite, results=run.suite.results)
    if run.source.loaded:  # the tokenizer is the caller's, as the model is
        trimmed.give_to(before)
