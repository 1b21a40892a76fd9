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
# The config groups for which a caller can pass an object instead of a name, each with the base
# class that the object must have.
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
    measures and saves only what `overrides` ask for: with "eval=perplexity", it measures the
    perplexity; with "checkpoint.save=true" and "checkpoint.dir=…", it saves a checkpoint. Nothing
    is cached. The states of the random number generators of torch, numpy and Python do not change,
    and each module of the model keeps its training or evaluation mode.

    Args:
        model: a causal language model of transformers, without adapters and not quantised
        tokenizer: the tokenizer of the model
        ratio: the share of the weights in the decoder's Linear layers to remove, 0 <= ratio < 1;
            0.2 if neither target nor plan is given
        target: upper limits on the size of the pruned model, given instead of a ratio, such as
            {"bytes": 200e6}; the keys are the options in the section `target` of the config
        plan: the folder of a finished run, the path of its plan.json, or the name of a packaged
            plan. The pruned model keeps the units (attention heads, neurons or experts) that this
            plan lists. Ratio, target, metric and structure cannot be given together with a plan
        metric: the metric that scores the importance of each channel: a name such as "WIFV", an
            object such as `WIFV()`, or a function `score(weight_OI, statistics) -> score_I`. This
            function gets the weight of an output projection with O outputs and I input channels,
            and the statistics of its inputs. It returns a score for each input channel; a higher
            score means that the channel is more important
        structure: the structure, which selects the units to remove: a name such as "AL-AM", or an
            object such as `ALAM()`
        compensation: the compensation, which replaces the contribution of the removed units: a name
            such as "bias", or an object such as `BiasCompensation()`
        method: the name of a preset of metric, structure, compensation and calibration
        dataset: the calibration texts: the name of a corpus, a file, a mixture {name: weight}, or a
            list of strings, each of which is the text of a document
        num_samples: the number of calibration windows, at least 1
        seq_len: the number of tokens in a window, at most the context length of the model
        batch_size: the number of windows in a forward pass, at least 1
        bos: whether each window begins with the BOS token: True, False, or "auto", which means
            True if the tokenizer puts BOS in front of texts
        propagate: whether each layer is calibrated on the outputs of the "dense" or of the "pruned"
            layers before it
        overrides: further options as on the command line, each as "key=value". A key that another
            argument sets is refused. "vocabulary=trim" also changes the tokenizer in place

    If metric, structure, compensation or an option of the calibration is not given, it comes from
    the preset `method`.

    Raises:
        ValueError: an argument is invalid. The message is one line that names the argument. The
            model has then not changed, unless the activations of a layer are not finite, which is
            found only after earlier layers have been pruned.
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
    """Return the objects in `choices`, by config group. A metric function becomes a `Metric`.

    choices: the metric, the structure and the compensation that the caller has given, each as a
        name, as an object or as None.
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
    """Check that no override sets a key that another argument or `flap.prune` itself sets.

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
    """Compose and check the config in the same way as the command line.

    This also works if the caller of `flap.prune` is itself a Hydra application.

    values: config keys with values that take precedence over `overrides`.
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
    """Check that `round_to` and `seed`, if set in the config, are those of the caller's objects.

    A structure object has its own `round_to`, and a metric object may have its own `seed`.
    """
    for name, group in (("round_to", "structure"), ("seed", "metric")):
        of_run = getattr(config, name)
        of_object = getattr(objects.get(group), name, of_run)
        if of_run != getattr(FlapConfig, name):
            expected = f"{of_object}, the value of the {group} object"
            require(of_run == of_object, name, of_run, expected)


@contextmanager
def _plain_torch(model: PreTrainedModel) -> Iterator[None]:
    """Use torch's default settings in a `with` block, because runs of the command line use them.

    The caller's settings (dtype, device, autocast, inference mode) are restored afterwards.
    """
    device_types = {"cpu"}
    for parameter in model.parameters():
        device_types.add(parameter.device.type)
    device_types.discard("meta")

    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        # tensors that are created in inference mode cannot be trained later
        stack.enter_context(torch.inference_mode(False))
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _modes_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore the training or evaluation mode of each module after a `with` block.

    A module that is created inside the block gets the mode that the model had before the block.
    """
    modes = {module: module.training for module in model.modules()}
    mode_of_model = model.training
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, mode_of_model)
