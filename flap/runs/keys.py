"""Keys, which identify the artefacts of a run by everything that they depend on.

Each key has everything that changes the result, and nothing else.
"""

from dataclasses import asdict
from typing import Any

import torch

from flap.method.allocation import PruningPlan
from flap.method.vocabulary.source import TrimmedSource
from flap.results import device_name
from flap.results.configs import changes_the_model, flat
from flap.runs.run import Run
from flap.runs.texts import counted_in
from flap.runtime import ranks
from flap.storage import VERSION, digest

Key = dict[str, Any]
DECIDING = (  # the sections of the config that decide on the plan
    "metric",
    "structure",
    "compensation",
    "ratio",
    "target",
    "mask_only",
    "calibration",
    "vocabulary",
    "plan",
)


def windows(run: Run) -> Key:
    """Return the key of the calibration windows and of the units that are scored."""
    key: Key = {}
    if run.choices.experts:
        key["units"] = "experts"
    if "calibration" in run.texts:
        key |= run.texts["calibration"].key
    return key


def processes() -> Key:
    """Return how many processes add up sums, because this number changes the rounding."""
    if ranks.size() == 1:
        return {}
    return {"processes": ranks.size()}


def dense(run: Run) -> Key:
    """Return the key of the dense model on the device where it is measured."""
    return {"model": run.source.fingerprint, "device": run.source.device.type}


def on_device(run: Run) -> Key:
    """Return the key of results of the dense model, such as text, that differ between devices."""
    return {**run.source.fingerprint, "device": run.source.device.type}


def statistics(run: Run) -> Key:
    """Return the key of statistics."""
    key = on_device(run) | windows(run) | processes()
    if run.choices.need_gradients:
        key["gradients"] = True
    return key


def scores(run: Run) -> Key | None:
    """Return the key of scores, which does not depend on the ratio.

    The scores of a search also depend on its trials.

    None if scores are not stored: they are made from plain statistics, or a plan is given.
    """
    search = run.choices.search
    selection = run.choices.selection
    options = run.described
    key: Key = {"metric": options["metric"]}
    if search is not None:
        key["trials"] = {"tokens": search.tokens, "levels": search.levels}
        key["compensation"] = options["compensation"]
    elif selection is None or not selection.metric.needs_covariance:
        return None
    return statistics(run) | run.choices.code | key


def counted_texts(run: Run) -> Key:
    """Return the key of the texts that `vocabulary=trim` counts. It is empty if all tokens stay."""
    if run.choices.vocabulary is None:
        return {}
    return {"counted_texts": [text.sha256 for text in counted_in(run.texts).existing]}


def recovery(run: Run) -> Key:
    """Return the key of the training after compression; empty if there is none."""
    training = run.choices.recovery
    if training is None:
        return {}
    text = run.texts[training.use]
    key = {**asdict(training), "windows": text.key, **processes()}
    if run.choices.vocabulary is not None or isinstance(run.source, TrimmedSource):
        key["teacher"] = "untrimmed"
    return {"recover": key}


def compressed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of a compressed model: the dense model, the plan, and the way of removal."""
    options = run.described
    return {
        **dense(run),
        **processes(),
        **run.choices.code,
        "plan": digest(plan.to_dict()),
        "calibration": windows(run),
        "propagate": run.choices.calibration.propagate,
        "compensation": options["compensation"],
        "mask_only": options["mask_only"],
    }


def pruned(run: Run, plan: PruningPlan) -> Key:
    """Return the key of the model that a run saves, possibly trained after compression."""
    return compressed(run, plan) | recovery(run)


def timed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of times, which also depend on the type of GPU and the number of threads."""
    device = {"device": device_name(run.source.device), "threads": torch.get_num_threads()}
    return pruned(run, plan) | device


def inputs(run: Run) -> dict[str, str]:
    """Return a digest of each input beside the config that changes the pruned model.

    These are weights and texts.
    """
    found = {"model": run.source.fingerprint, "vocabulary": counted_texts(run), **recovery(run)}
    if "calibration" in run.texts:
        found["calibration"] = run.texts["calibration"].key
    if run.choices.given is not None:
        found["plan"] = run.choices.given.plan.to_dict()
    return run.choices.code | {name: digest(value) for name, value in found.items() if value}


def of_the_run(run: Run) -> Key:
    """Return the key of everything that a run makes of a model.

    It has the part of the config that changes the result, and the inputs.
    """
    options = flat(run.described)
    saved = {"save": run.config.checkpoint.save, "dir": run.config.checkpoint.dir}
    return {
        "version": VERSION,
        "config": {name: value for name, value in options.items() if changes_the_model(name)},
        "checkpoint": saved,
        "inputs": inputs(run),
        **processes(),
    }


def workspace(run: Run) -> Key:
    """Return the key of the working directory, in which an interrupted run continues."""
    options = run.described
    decided = {name: options[name] for name in DECIDING}
    key = statistics(run) | counted_texts(run) | recovery(run) | run.choices.code
    return key | {"version": VERSION} | decided
