"""Keys: what the artefacts of a run depend on. Each key has everything that changes the result, and nothing else."""

from dataclasses import asdict
from typing import Any

import torch

from flap.method.allocation import PruningPlan
from flap.results import described, device_name
from flap.results.configs import changes_the_model, flat
from flap.runs.run import Run
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


def processes(run: Run) -> Key:
    """Return how many processes add up what they find; a sum over several is rounded differently."""
    if ranks.size() == 1:
        return {}
    return {"processes": ranks.size()}


def dense(run: Run) -> Key:
    """Return the key of the dense model on the device where it is measured."""
    return {"model": run.source.fingerprint, "device": run.source.device.type}


def on_device(run: Run) -> Key:
    """Return the key of what the dense model computes. Text that it writes differs between devices."""
    return {**run.source.fingerprint, "device": run.source.device.type}


def statistics(run: Run) -> Key:
    """Return the key of statistics."""
    return on_device(run) | windows(run) | processes(run)


def scores(run: Run) -> Key | None:
    """Return the key of scores, which does not depend on the ratio. A search's scores depend on its trials.

    None if scores are not stored: they are made from plain statistics, or a plan is given.
    """
    options = described(run.config)
    search = run.choices.search
    key: Key = {"metric": options["metric"]}
    if search is not None:
        key["trials"] = {"tokens": search.tokens, "levels": search.levels}
        key["compensation"] = options["compensation"]
    elif run.choices.selection is None or not run.choices.selection.metric.needs_covariance:
        return None
    return {**statistics(run), **run.choices.code, **key}


def counted_texts(run: Run) -> Key:
    """Return the key of the texts whose tokens are counted for `vocabulary=trim`; empty if all tokens stay."""
    if run.choices.vocabulary is None:
        return {}
    texts = run.texts.get("vocabulary", run.texts.get("calibration"))
    return {"counted": [text.sha256 for text in texts.existing]} if texts else {}


def recovery(run: Run) -> Key:
    """Return the key of the training after compression; empty if there is none."""
    if run.choices.recovery is None:
        return {}
    options = asdict(run.choices.recovery)
    text = run.texts[run.choices.recovery.use]
    return {"recover": {**options, "windows": text.key, **processes(run)}}


def compressed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of a compressed model: the dense model, the plan, and how units are removed."""
    options = described(run.config)
    key = dense(run) | processes(run) | run.choices.code
    key["plan"] = digest(plan.to_dict())
    key["calibration"] = windows(run)
    key["propagate"] = run.config.calibration.propagate
    for name in ("compensation", "mask_only"):
        key[name] = options[name]
    return key


def pruned(run: Run, plan: PruningPlan) -> Key:
    """Return the key of the model that a run saves, which may have been trained after compression."""
    return compressed(run, plan) | recovery(run)


def timed(run: Run, plan: PruningPlan) -> Key:
    """Return the key of times, which also depend on the type of the GPU and on the number of threads."""
    device = {"device": device_name(run.source.device), "threads": torch.get_num_threads()}
    return pruned(run, plan) | device


def inputs(run: Run) -> dict[str, str]:
    """Return a digest of each thing that is not in the config and changes the pruned model: weights and texts."""
    found = {"model": digest(run.source.fingerprint), **run.choices.code}
    if "calibration" in run.texts:
        found["calibration"] = digest(run.texts["calibration"].key)
    counted = counted_texts(run)
    if counted:
        found["vocabulary"] = digest(counted)
    for use, key in recovery(run).items():
        found[use] = digest(key)
    if run.choices.given is not None:
        found["plan"] = digest(run.choices.given.plan.to_dict())
    return found


def of_the_run(run: Run) -> Key:
    """Return the key of everything that a run makes of a model: the config that changes it, and the inputs."""
    options = flat(described(run.config))
    config = {name: value for name, value in options.items() if changes_the_model(name)}
    saved = {"save": run.config.checkpoint.save, "dir": run.config.checkpoint.dir}
    key: Key = {"version": VERSION, "config": config, "checkpoint": saved}
    return key | {"inputs": inputs(run)} | processes(run)


def workspace(run: Run) -> Key:
    """Return the key of the working directory, in which an interrupted run continues."""
    options = described(run.config)
    decided = {name: options[name] for name in DECIDING}
    key = statistics(run) | counted_texts(run) | recovery(run) | run.choices.code
    return key | {"version": VERSION} | decided
