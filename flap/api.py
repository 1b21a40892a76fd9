"""The Python interface `flap.prune`, which prunes a model that is already in memory."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from hydra import compose
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import (
    FlapConfig,
    build,
    composing,
    literal,
    name_method,
    refuse,
    require,
    settled_by,
    typed,
)
from flap.data import texts_in_memory
from flap.method.allocation import Structure
from flap.method.compression import Compensation
from flap.method.importance import Metric, MetricFunction, metric_of
from flap.models import LoadedSource
from flap.pipeline import run
from flap.results import Report

log = logging.getLogger(__name__)

# Hydra overrides that `flap.prune` always passes. The caller's overrides come after them and take
# precedence.
DEFAULTS = ("eval=none", "checkpoint.save=false", "use_cache=false", "run_name=flap.prune")
# For some config groups, the caller can pass an object instead of a name. These are the base
# classes that the objects must have.
BASES = {"metric": Metric, "structure": Structure, "compensation": Compensation}
# The models that `flap.prune` has already pruned in this process.
_pruned: WeakSet[PreTrainedModel] = WeakSet()


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    plan: str | os.PathLike[str] | None = None,
    metric: str | Metric | MetricFunction | None = None,
    structure: str | Structure | None = None,
    compensation: str | Compensation | None = None,
    method: str = "flap",
    dataset: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    seq_len: int | None = None,
    batch_size: int | None = None,
    bos: str | bool | None = None,
    propagate: str | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Prune a model in place and return the report.

    `model.save_pretrained` then writes a checkpoint that `flap.load` reads. `flap.prune` itself
    measures and saves only what `overrides` ask for. With "eval=perplexity", for example, it
    measures the perplexity. With "checkpoint.save=true" and "checkpoint.dir=…", it saves a
    checkpoint. It neither reads nor writes flap's cache of results. The states of the random number
    generators of torch, numpy and Python do not change, and each module of the model keeps its
    training or evaluation mode.

    Args:
        model: a causal language model of transformers that has no adapters (such as LoRA) and is
            not quantised
        tokenizer: the tokenizer of the model
        ratio: the share of weights to remove from the decoder's Linear layers, 0 <= ratio < 1;
            0.2 if neither target nor plan is given
        target: upper limits on the size of the pruned model, given instead of a ratio, such as
            {"bytes": 200e6}; the keys are the options in the section `target` of the config
        plan: the folder of a finished run, the path of its plan.json, or the name of a packaged
            plan. The pruned model keeps the units (attention heads, neurons or experts) that this
            plan lists. Ratio, target, metric and structure cannot be given together with a plan
        metric: the metric that scores the importance of each channel: a name such as "WIFV", an
            object such as `WIFV()`, or a function `score(weight_OI, statistics) -> score_I`. This
            function gets the weight of an output projection with O output and I input channels,
            and statistics of the activations that enter this projection during calibration. It
            returns a score for each input channel; a higher score means that the channel is more
            important
        structure: the structure, which selects the units to remove: a name such as "AL-AM", or an
            object such as `ALAM()`
        compensation: the compensation, which approximates what the removed units contributed to the
            output of their layer: a name such as "bias", or an object such as `BiasCompensation()`
        method: the name of a preset, which chooses the metric, the structure, the compensation and
            the options of the calibration
        dataset: the calibration texts: the name of a corpus, the path of a file, a mixture of
            several corpora or files as {name: weight}, or a list of documents (strings)
        num_samples: the number of calibration windows, at least 1
        seq_len: the number of tokens in a window, at most the context length of the model
        batch_size: the number of windows in a forward pass, at least 1
        bos: whether each window begins with the BOS token: True, False, or "auto", which means
            True if the tokenizer puts BOS in front of texts
        propagate: whether each layer is calibrated on the outputs of the "dense" or of the "pruned"
            layers before it
        overrides: further options as on the command line, each as "key=value". An option that
            another argument already sets raises a ValueError. "vocabulary=trim" also changes the
            tokenizer in place

    The preset `method` supplies the metric, the structure, the compensation and the options of the
    calibration that are not given.

    Raises:
        ValueError: an argument is invalid. The message is one line that names the argument. The
            model is then unchanged, with one exception: if the activations of a layer are not
            finite, this may be noticed only after earlier layers have been pruned.
    """
    source = LoadedSource(model, tokenizer)
    planned = {"ratio": ratio, "target": target, "metric": metric, "structure": structure}
    given = [f"{name}={value}" for name, value in planned.items() if value is not None]
    refuse(given, settled_by(plan))

    values = {
        "ratio": ratio,
        "plan": plan,
        "calibration.dataset": dataset,
        "calibration.num_samples": num_samples,
        "calibration.seq_len": seq_len,
        "calibration.batch_size": batch_size,
        "calibration.bos": bos,
        "calibration.propagate": propagate,
    }
    require(isinstance(target, Mapping | None), "target", target, 'a mapping, as {"bytes": 200e6}')
    values |= {f"target.{name}": value for name, value in (target or {}).items()}
    values = {key: value for key, value in values.items() if value is not None}

    choices = {"metric": metric, "structure": structure, "compensation": compensation}
    names = [f"{group}={name}" for group, name in choices.items() if isinstance(name, str)]
    objects = _objects(choices)
    _check_overrides(overrides, objects, values | settled_by(plan))

    config = _compose([f"method={method}", *names, *DEFAULTS, *overrides], values)
    config = replace(config, model=source.described, **objects)
    _check_shared_options(config, objects)
    config.method = name_method(config)

    if model in _pruned:
        log.warning("this process has pruned this model before: the ratio is of what is left")
    with _plain_torch(model), _modes_restored(model):
        report = run(config, None, source=source, overrides=overrides)
    _pruned.add(model)
    return report


def _objects(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict from config groups, such as "metric", to the objects that the caller has given.

    A function that is given as the metric is wrapped in a `Metric`.

    choices: the metric, the structure and the compensation that the caller has given, each as a
        name, as an object or as None. Only the objects are returned.
    """
    objects = {}
    for group, choice in choices.items():
        if choice is None or isinstance(choice, str):
            continue
        if group == "metric" and callable(choice) and not isinstance(choice, type):
            choice = metric_of(choice)
        objects[group] = build(group, choice, BASES[group])
    return objects


def _check_overrides(
    overrides: Sequence[str], objects: Iterable[str], values: Iterable[str]
) -> None:
    """Refuse overrides of config keys that another argument or `flap.prune` itself sets.

    Such an override would have no effect, although the report would show it.

    objects: the config groups for which the caller has given an object.
    values: the config keys that other arguments have set.
    """
    require(not isinstance(overrides, str), "overrides", overrides, "a list of such texts")
    settled = {
        "model": "it is loaded already",
        "tracking": "only runs of the command line are tracked",
        "hydra": "only runs of the command line have a folder",
        "use_cache": (
            "the weights of a loaded model may change; runs of the command line share a cache"
        ),
    }
    settled |= dict.fromkeys(objects, "it is an object, which has its options itself")
    settled |= dict.fromkeys(values, "a keyword sets it")
    try:
        refuse(overrides, settled)
    except ValueError as error:
        raise ValueError(f"overrides: {error}") from error


def _compose(overrides: list[str], values: dict[str, Any]) -> FlapConfig:
    """Compose and check the config in the same way as the command line does.

    This also works if the program that calls `flap.prune` is itself a Hydra application.

    values: a dict from config keys to values, which take precedence over `overrides`.
    """
    dataset = values.get("calibration.dataset")
    texts = None
    if isinstance(dataset, Sequence) and not isinstance(dataset, str):
        texts = texts_in_memory(dataset, "calibration.dataset")
        values = values | {"calibration.dataset": texts.label}

    with composing():
        composed = compose("config", overrides)
        for key, value in values.items():
            OmegaConf.update(composed, key, literal(value), merge=False)
        config = typed(composed)

    if texts is not None:
        config.calibration.dataset = texts
    return config


def _check_shared_options(config: FlapConfig, objects: Mapping[str, Any]) -> None:
    """Check that `round_to` and `seed` are the same in the config and in the caller's objects.

    A structure object has its own `round_to`, and a metric object may have its own `seed`. An
    option that has its default value in the config is not checked.
    """
    for name, group in (("round_to", "structure"), ("seed", "metric")):
        of_run = getattr(config, name)
        of_object = getattr(objects.get(group), name, of_run)
        if of_run != getattr(FlapConfig, name):
            expected = f"{of_object}, the value of the {group} object"
            require(of_run == of_object, name, of_run, expected)


@contextmanager
def _plain_torch(model: PreTrainedModel) -> Iterator[None]:
    """Use torch's default settings during a `with` block, as in a run from the command line.

    Afterwards, restore the settings of the caller: default dtype, default device, autocast and
    inference mode.
    """
    device_types = {"cpu"}
    for parameter in model.parameters():
        device_types.add(parameter.device.type)
    device_types.discard("meta")

    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        # turn inference mode off, because tensors that are created in it cannot be trained later
        stack.enter_context(torch.inference_mode(False))
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _modes_restored(model: PreTrainedModel) -> Iterator[None]:
    """After a `with` block, put each module back into its training or evaluation mode.

    A module that is created inside the block gets the mode that the model had before the block.
    """
    modes = {module: module.training for module in model.modules()}
    mode_of_model = model.training
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, mode_of_model)
