"""The Python interface: prune a model that is loaded already."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.allocation import Structure
from flap.compression import Compensation
from flap.config import FlapConfig, build, config_dir, explain, name_method, require, typed
from flap.importance import Metric
from flap.models import LoadedSource
from flap.pipeline import run
from flap.results import Report

FIXED = ("eval=none", "checkpoint.save=false", "use_cache=false", "run_name=flap.prune")  # unless overrides say more


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    metric: str | Metric | None = None,
    structure: str | Structure | None = None,
    compensation: str | Compensation | None = None,
    method: str = "flap",
    overrides: tuple[str, ...] = (),
    **calibration: Any,
) -> Report:
    """Prune `model` in place and return the report; `model.save_pretrained` then writes a checkpoint that loads again.

    `ratio` (0.2 by default) is the share to remove; `target` says instead what the model may be, as {"bytes": 200e6}.
    `metric`, `structure` and `compensation` are objects, as `WIFV()`, or names of the command line's groups; `method`
    is such a name. Further keywords are keys of `calibration` (dataset, num_samples, seq_len, batch_size); `overrides`
    takes all other keys as "key=value" of the command line, and none that a keyword says already; an object has its
    options itself. Nothing is measured, saved or cached unless `overrides` ask for it: "eval=perplexity",
    "checkpoint.save=true" with "checkpoint.dir=…", "use_cache=true". Random states are not changed.

    Raises:
        ValueError: bad input, in one line that names the field; the model is as it was.
    """
    source = LoadedSource(model, tokenizer)
    groups = {"metric": metric, "structure": structure, "compensation": compensation, "method": method}
    names = [f"{group}={choice}" for group, choice in groups.items() if isinstance(choice, str)]
    objects = {group: build(group, choice) for group, choice in groups.items() if not isinstance(choice, str | None)}
    values = {f"calibration.{key}": value for key, value in calibration.items()}
    values |= {f"target.{key}": value for key, value in (target or {}).items()}
    values |= {} if ratio is None else {"ratio": ratio}
    _check_overrides(overrides, objects, values)
    config = replace(_compose([*names, *FIXED, *overrides], values), model=source.described, **objects)
    _check_shared(config, objects)
    config.method = name_method(config)
    return run(config, None, source=source)


def _check_overrides(overrides: Sequence[str], objects: Iterable[str], values: Iterable[str]) -> None:
    """Check that overrides leave alone what the call says itself: they would be dropped, and yet reported.

    objects: groups whose choice is an object. values: keys that a keyword sets.

    Raises:
        ValueError: one of them does not.
    """
    settled = {"model": "it is loaded already", "tracking": "only runs of the command line are tracked"}
    settled |= dict.fromkeys(objects, "it is an object, which has its options itself")
    settled |= dict.fromkeys(values, "a keyword sets it")
    for override, (name, reason) in product(overrides, settled.items()):
        key = override.lstrip("+~").partition("=")[0]
        if f"{key}.".startswith(f"{name}."):
            raise ValueError(f"overrides: {override}: expected no {name} here, because {reason}")


def _check_shared(config: FlapConfig, objects: Mapping[str, Any]) -> None:
    """Check the options of a run that a choice by name takes over, while an object has its own.

    Raises:
        ValueError: the run asks for another value than the object has.
    """
    for name, group in (("round_to", "structure"), ("seed", "metric")):
        asked, default = getattr(config, name), getattr(FlapConfig, name)
        own = getattr(objects.get(group), name, asked)
        require(asked in (own, default), name, asked, f"{own}, as the {group} has it, which is an object")


def _compose(overrides: list[str], values: Mapping[str, Any]) -> FlapConfig:
    """Return the checked config of these overrides, as the command line makes it; also inside a Hydra application.

    values: by key, set as they are.
    """
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose("config", overrides)
            for key, value in values.items():
                OmegaConf.update(config, key, _literal(value), merge=False)
            return typed(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _literal(value: Any) -> Any:
    """Return a value that OmegaConf reads as it is: a text with "${" would be an interpolation."""
    if isinstance(value, str | os.PathLike):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", os.fspath(value))
    if isinstance(value, Mapping):
        return {str(key): _literal(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(one) for one in value]
    return value.item() if isinstance(value, numpy.generic) else value
