"""The keys under which a run stores the results of its stages in the cache and in its folder.

A stage is a part of a run, such as calibration or scoring. A key contains everything that changes
the result of a stage, and nothing else.

A unit is a KV head with its query heads, an MLP neuron or an expert. A plan lists the units that
stay. A compensation changes output projections to make up for the removed units. The compressed
model is the model after units were removed, before any training.
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
DECIDING = (  # the sections and keys of the config that determine the compressed model
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
    """Return the cache key of the calibration windows and of the kind of units that are scored.

    In a mixture of experts, either neurons or whole experts are scored.
    """
    key: Key = {}
    if run.choices.experts:
        key["units"] = "experts"
    if "calibration" in run.texts:
        key |= run.texts["calibration"].key
    return key


def processes() -> Key:
    """Return a cache key with the number of processes; an empty key if there is only one process.

    The results of a stage depend on the number of processes, which changes how sums are rounded.
    """
    if ranks.size() == 1:
        return {}
    return {"processes": ranks.size()}


def dense(run: Run) -> Key:
    """Return the cache key of the dense model, with the type of the device on which it runs."""
    return {"model": run.source.fingerprint, "device": run.source.device.type}


def on_device(run: Run) -> Key:
    """Return the cache key of results that depend on the dense model and on the type of device."""
    return {**run.source.fingerprint, "device": run.source.device.type}


def statistics(run: Run) -> Key:
    """Return the cache key of the calibration statistics."""
    key = on_device(run) | windows(run) | processes()
    if run.choices.need_gradients:
        key["gradients"] = True
    return key


def scores(run: Run) -> Key | None:
    """Return the cache key of the scores, which do not depend on the share of removed parameters.

    With structure=search, the key also contains the compensation and the options of the trials. In
    a trial, units of one attention or MLP are removed to measure the effect on the predictions.

    Return None if the scores are not stored. This is the case in two situations: the config names
    a plan, so that nothing is scored; or the scores are computed from statistics without
    covariances, which is fast.
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
    """Return the key of the texts in which vocabulary=trim counts tokens.

    The key is empty if the vocabulary is not trimmed.
    """
    if run.choices.vocabulary is None:
        return {}
    return {"counted_texts": [text.sha256 for text in counted_in(run.texts).existing]}


def recovery(run: Run) -> Key:
    """Return the key of the training after compression; an empty key if there is no training."""
    training = run.choices.recovery
    if training is None:
        return {}
    text = run.texts[training.use]
    key = {**asdict(training), "windows": text.key, **processes()}
    if run.choices.vocabulary is not None or isinstance(run.source, TrimmedSource):
        key["teacher"] = "untrimmed"
    return {"recover": key}


def compressed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of a compressed model.

    The key contains, for example, the dense model, the plan, the compensation, the calibration
    windows, and whether removed units stay in the model with all of their weights set to zero.
    """
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
    """Return the key of the final model: the compressed model, which may have been trained."""
    return compressed(run, plan) | recovery(run)


def timed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of times that are measured on a pruned model.

    The key contains the name of the device and the number of CPU threads.
    """
    device = {"device": device_name(run.source.device), "threads": torch.get_num_threads()}
    return pruned(run, plan) | device


def inputs(run: Run) -> dict[str, str]:
    """Return a digest of each input that changes the pruned model, except the config.

    These inputs are the weights, the texts, the user's own code, and the plan, if the config names
    a plan.
    """
    found = {"model": run.source.fingerprint, "vocabulary": counted_texts(run), **recovery(run)}
    if "calibration" in run.texts:
        found["calibration"] = run.texts["calibration"].key
    if run.choices.given is not None:
        found["plan"] = run.choices.given.plan.to_dict()
    return run.choices.code | {name: digest(value) for name, value in found.items() if value}


def of_the_run(run: Run) -> Key:
    """Return the key under which a run stores its pruned model.

    The key contains the inputs of the run, and those options that change the pruned model.
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
    """Return the key of the working directory, from which an interrupted run resumes."""
    options = run.described
    decided = {name: options[name] for name in DECIDING}
    key = statistics(run) | counted_texts(run) | recovery(run) | run.choices.code
    return key | {"version": VERSION} | decided
