"""The Python interface: prune a model that is loaded already."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any, TypedDict, Unpack, cast
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
from flap.method.allocation import Structure
from flap.method.compression import Compensation
from flap.method.importance import Metric
from flap.models import LoadedSource
from flap.pipeline import run
from flap.results import Report

log = logging.getLogger(__name__)
_pruned: WeakSet[PreTrainedModel] = WeakSet()  # the models that this process has pruned
BASES = {"metric": Metric, "structure": Structure, "compensation": Compensation}
FIXED = (
    "eval=none",
    "checkpoint.save=false",
    "use_cache=false",
    "run_name=flap.prune",
)  # unless overrides say more


class PruneOptions(TypedDict, total=False):
    """The keywords of `prune`, whose docstring says what each one means."""

    ratio: float | None
    target: Mapping[str, float] | None
    plan: str | os.PathLike[str] | None
    metric: str | Metric | None
    structure: str | Structure | None
    compensation: str | Compensation | None
    method: str
    overrides: Sequence[str]
    dataset: Any
    num_samples: int
    seq_len: int
    batch_size: int
    bos: str
    propagate: str


def prune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Unpack[PruneOptions]
) -> Report:
    """Prune `model` in place and return the report; `model.save_pretrained` then writes a checkpoint that loads again.

    Options:
        ratio: the share of the prunable parameters to remove, 0 <= ratio < 1; 0.2 by default
        target: what the model may be, instead of a ratio, as {"bytes": 200e6}; keys of `target` of the command line
        plan: the folder of a finished run, or its plan.json, whose units stay; then no ratio, target, metric, structure
        metric: how much a channel matters, a name of the command line or an object, as `WIFV()`
        structure: which units are removed, a name or an object, as `ALAM()`
        compensation: what makes up for the removed ones, a name or an object, as `BiasCompensation()`
        method: a preset of the three and of calibration, by its name; "flap" by default
        dataset: the calibration texts, the name of a corpus, a file, or a mixture {name: weight}
        num_samples: calibration windows, at least 1
        seq_len: tokens in a window, at most the model's context
        batch_size: windows at a time, at least 1
        bos, propagate: see `calibration` of the command line
        overrides: all other keys of the command line, as "key=value"; none that a keyword sets, and none of an object.
            "vocabulary=trim" also changes the tokenizer in place

    Nothing is measured or saved unless `overrides` ask for it: "eval=perplexity", "checkpoint.save=true" with
    "checkpoint.dir=…". Nothing is cached. Random states are not changed, and modules stay in the mode that they are in.

    Raises:
        ValueError: bad input, in one line that names the field; the model is as it was, unless a layer's activations
            are not finite, which is found after layers before it have been pruned.
    """
    for name in {
        field.name for field in fields(FlapConfig)
    } & options.keys() - PruneOptions.__annotations__.keys():
        raise ValueError(
            f"{name}: no keyword of flap.prune; write overrides=['{name}=…'], as on the command line"
        )
    source = LoadedSource(model, tokenizer)
    given = cast(dict[str, Any], {"method": "flap", **options})
    overrides = given.pop("overrides", ())
    ratio = given.pop("ratio", None)
    target = given.pop("target", None)
    plan = given.pop("plan", None)
    refuse(
        [f"{name}={value}" for name, value in options.items() if value is not None],
        settled_by(plan),
    )
    require(isinstance(target, Mapping | None), "target", target, 'a mapping, as {"bytes": 200e6}')
    groups = {
        group: given.pop(group, None) for group in ("metric", "structure", "compensation", "method")
    }
    names = [f"{group}={choice}" for group, choice in groups.items() if isinstance(choice, str)]
    objects = {
        group: build(group, choice, BASES.get(group, str))
        for group, choice in groups.items()
        if not isinstance(choice, str | None)
    }
    values = {f"calibration.{key}": value for key, value in given.items()}
    values |= {f"target.{key}": value for key, value in (target or {}).items()}
    values |= {
        name: value for name, value in (("ratio", ratio), ("plan", plan)) if value is not None
    }
    _check_overrides(overrides, objects, values | settled_by(plan))
    config = replace(
        _compose([*names, *FIXED, *overrides], values), model=source.described, **objects
    )
    _check_shared(config, objects)
    config.method = name_method(config)
    if model in _pruned:
        log.warning("this process has pruned this model before: the ratio is of what is left")
    with _plain_torch(model), _modes_restored(model):
        report = run(config, None, source=source)
    _pruned.add(model)
    return report


@contextmanager
def _plain_torch(model: PreTrainedModel) -> Iterator[None]:
    """Give the block torch's own defaults, as a process of the command line has them; the caller's come back."""
    devices = {"cpu", *(one.device.type for one in model.parameters())} - {"meta"}
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(
            torch.inference_mode(False)
        )  # else the new weights could not be trained
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _modes_restored(model: PreTrainedModel) -> Iterator[None]:
    """Put each module back into training mode that was in it; one that is made in the block is in the model's."""
    modes = {module: module.training for module in model.modules()}
    mode = model.training
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, mode)


def _check_overrides(
    overrides: Sequence[str], objects: Iterable[str], values: Iterable[str]
) -> None:
    """Check that overrides set none of these groups and keys: they would be dropped, and yet reported."""
    require(not isinstance(overrides, str), "overrides", overrides, "a list of such texts")
    settled = {"model": "it is loaded already"}
    settled |= {
        "tracking": "only runs of the command line are tracked",
        "hydra": "only those have a folder",
    }
    settled |= {
        "use_cache": "the weights of a loaded model may change; runs of the command line share a cache"
    }
    settled |= dict.fromkeys(objects, "it is an object, which has its options itself")
    settled |= dict.fromkeys(values, "a keyword sets it")
    try:
        refuse(overrides, settled)
    except ValueError as error:
        raise ValueError(f"overrides: {error}") from error


def _check_shared(config: FlapConfig, objects: Mapping[str, Any]) -> None:
    """Check that options of the run that a named choice takes over have the values that an object has."""
    for name, group in (("round_to", "structure"), ("seed", "metric")):
        asked = getattr(config, name)
        default = getattr(FlapConfig, name)
        own = getattr(objects.get(group), name, asked)
        require(asked in (own, default), name, asked, f"{own}, the value of the {group} object")


def _compose(overrides: list[str], values: Mapping[str, Any]) -> FlapConfig:
    """Return the checked config of overrides and values, as the command line makes it; also in a Hydra application."""
    with composing():
        config = compose("config", overrides)
        for key, value in values.items():
            OmegaConf.update(config, key, literal(value), merge=False)
        return typed(config)
