"""The Python interface: prune a model that is loaded already."""

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.allocation import Structure
from flap.compression import Compensation
from flap.config import FlapConfig, config_dir, explain, name_method, typed
from flap.importance import Metric
from flap.models import Given
from flap.pipeline import run
from flap.reporting import Report


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
    takes all other keys as "key=value". Nothing is measured, saved or cached, and random states are not changed.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    groups = {"metric": metric, "structure": structure, "compensation": compensation}
    names = {group: choice for group, choice in groups.items() if isinstance(choice, str)} | {"method": method}
    values = [f"calibration.{key}={_quoted(value)}" for key, value in calibration.items()]
    choices = [f"{group}={name}" for group, name in names.items()]
    values += [f"target.{key}={value}" for key, value in (target or {}).items()]
    values += [] if ratio is None else [f"ratio={ratio}"]
    fixed = ["eval=none", "checkpoint.save=false", "use_cache=false", "run_name=flap.prune"]
    config = _compose([*choices, *values, *fixed, *overrides])
    for group, choice in groups.items():
        if choice is not None and not isinstance(choice, str):
            setattr(config, group, choice)
    config.method = name_method(config)
    return run(config, None, source=Given(model, tokenizer))


def _compose(overrides: list[str]) -> FlapConfig:
    """Return the checked config of these overrides, as the command line makes it; also inside a Hydra application."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return typed(compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _quoted(value: Any) -> str:
    """Return a value as text in Hydra's override syntax."""
    return "'" + value.replace("'", r"\'") + "'" if isinstance(value, str) else str(value)
