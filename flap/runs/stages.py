"""The stages of a run around the method: loading, writing texts, measuring, trimming, training, saving."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from flap.checkpoint.save import make_label
from flap.checkpoint.save import save as save_checkpoint
from flap.config import one_line
from flap.data import Text, Windows
from flap.evaluation import Measurement
from flap.evaluation.base import Numbers
from flap.method.allocation import PruningPlan
from flap.method.calibration import answers
from flap.method.calibration.own_text import WRITTEN, Draft, text_of, write
from flap.method.recovery import Recovery
from flap.method.vocabulary import KeptTokens, Trimmed
from flap.method.vocabulary.rows import cut_rows
from flap.models import PlacedModel, adapt
from flap.results.provenance import described, provenance
from flap.runs.keys import Key
from flap.runs.run import Run
from flap.storage import WorkFolder, digest
from flap.storage.ranks import by_first

log = logging.getLogger(__name__)

Written = dict[str, dict[str, Any]]  # what the model has written, by the use of the text


def load(run: Run) -> PlacedModel:
    """Return the model at its placement, with the units that the structure removes."""
    with run.timed("load"):
        model = run.source.open(run.work)
        model.adapter = adapt(model.model, run.choices.structure.experts)
        return model


def measure_dense(run: Run, model: PlacedModel) -> Measurement:
    """Return the numbers of the dense model. Runs that measure the same share them."""
    with run.timed("evaluate"):
        return run.suite.dense(model, run.keys.dense, run.cache)


def write_own_texts(run: Run, model: PlacedModel) -> tuple[Run, Written]:
    """Return the run with the texts that the dense model writes itself, and facts about these, without the texts.

    Runs with the same model and options share a text.
    """
    facts: Written = {}
    for use, part in [(name, part) for name in run.to_write for part in run.texts[name].to_write]:
        written, text = _written(run, model, use, part)
        run = run.reading({**run.texts, use: run.texts[use].written(part, text)})
        name = f"{use} ({run.texts[use].name(part)})" if part in run.texts[use].asked else use
        facts[name] = {
            key: value for key, value in written.items() if key not in ("documents", "answered")
        }
        facts[name]["cache"] = run.cache_states["write own text"]
    return run, facts


def _written(run: Run, model: PlacedModel, use: str, part: int) -> tuple[dict[str, Any], Text]:
    """Return what the model has written for a part of a mixture, with facts about it, and as a text."""
    windows = run.texts[use]
    context = run.source.max_length
    key = {**run.source.fingerprint, "device": model.device.type}
    if part in windows.asked:
        make = partial(answers.answer, model, windows, part, context)
        asked = answers.key(windows, part)
        written = run.cached(
            "write own text", WRITTEN, key | asked, lambda work: make(work / f"{use}{part}")
        )
        return written, answers.text_of(written, windows, part)
    draft = Draft(windows, context)
    written = run.cached(
        "write own text", WRITTEN, key | draft.key, lambda work: write(model, draft, work / use)
    )
    return written, text_of(written)


def choose_tokens(run: Run, model: PlacedModel) -> KeptTokens | None:
    """Return the tokens that stay: those that are most often in texts, or expected there; None: all."""
    if run.choices.vocabulary is None:
        return None
    with run.timed("choose tokens"):
        text = "vocabulary" if "vocabulary" in run.texts else "calibration"
        return run.choices.vocabulary.choose(run.source.tokenizer, model, run.texts[text])


def trim(run: Run, model: PlacedModel, kept: KeptTokens | None) -> Run:
    """Remove the rows of all other tokens; return the run whose texts are read with the new tokenizer."""
    if kept is None:
        return run
    with run.timed("trim"):
        before = run.source.tokenizer
        trimmed = Trimmed.of(before, kept, model.adapter.vocab_size)
        cut_rows(model, trimmed.rows_K)
        run = run.trimmed_to(trimmed)
        if run.source.loaded:  # the tokenizer is the caller's, as the model is
            before._tokenizer = trimmed.tokenizer.backend_tokenizer
        return run


def recover(run: Run, model: PlacedModel, plan: PruningPlan) -> dict[str, Any]:
    """Train the compressed model in place to predict what the dense one predicts; return what the report says of it."""
    # imported here because other runs should not wait for transformers' Trainer
    from flap.method.recovery.distillation import recover as train
    from flap.method.recovery.distillation import training_windows

    recovery = run.choices.recovery
    assert recovery is not None
    with run.timed("recover") as work:
        place = (work / digest(plan.to_dict())).path
        teacher = run.source.open()
        assert place is not None
        own, written = _answered_by(model, run, recovery, work)
        windows_NT = training_windows(recovery, run.texts[recovery.use], own)
        if run.trimmed is not None:
            cut_rows(teacher, run.trimmed.rows_K)
            windows_NT = run.trimmed.reread(windows_NT, run.source.tokenizer)
        return train(recovery, model, teacher, windows_NT, place, run.config.seed) | {
            "own_text": written
        }


def _answered_by(
    model: PlacedModel, run: Run, recovery: Recovery, work: WorkFolder
) -> tuple[Windows | None, Written]:
    """Return the windows of a training with the compressed model's answers (None: it writes none), and facts."""
    windows = run.texts[recovery.use]
    facts = Written()
    if recovery.writer == "dense":
        return None, facts
    for part in windows.asked:
        written = answers.answer(
            model, windows, part, run.source.max_length, work / f"answers{part}"
        )
        own = windows.written(part, answers.text_of(written, windows, part))
        try:
            _ = own.drawn
            written.pop("answered")
            windows, facts[f"training ({windows.name(part)}, after compression)"] = own, written
        except ValueError as error:  # it writes little but loops
            log.warning(
                "recover.writer=%s: the dense model's answers stay (%s)",
                recovery.writer,
                one_line(error),
            )
    return windows, facts


def save(run: Run, model: PlacedModel, plan: PruningPlan) -> PlacedModel:
    """Write the checkpoint, which has to reload to the same logits; return the model for further work."""
    label = make_label(plan.to_dict(), provenance(described(run.config)))

    @by_first
    def write_checkpoint() -> None:
        tokenizer = (run.trimmed or run.source).tokenizer
        files = run.source.processor_files
        if run.suite.results:
            run.suite.results.begin()  # by which the same run, if it is killed, knows the checkpoint as its own
        save_checkpoint(model, tokenizer, run.target, label, run.replaces_checkpoint, files)

    with run.timed("save"):
        write_checkpoint()
        return model.saved_in(run.target)


def measure_pruned(run: Run, model: PlacedModel, key: Key) -> Measurement:
    """Return the numbers of a pruned model. key: what tells it from others of the same dense model."""
    with run.timed("evaluate"):
        return run.suite.pruned(model, run.keys.dense | key)


def measure_both(
    run: Run, reopen: Callable[[], PlacedModel], model: PlacedModel, plan: PruningPlan
) -> tuple[Numbers, Numbers]:
    """Return what is measured of both models in turns: of the dense one, which `reopen` opens, and the pruned one."""
    key = run.keys.dense | run.keys.pruned(plan) | run.keys.timed
    with run.timed("evaluate"):
        return run.suite.side_by_side(reopen, run.source.num_bytes, model, key)
