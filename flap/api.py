"""The same work from Python, on a model that is loaded already."""

from dataclasses import asdict
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.cache import Cache
from flap.config import FlapConfig, config_dir, explain, typed
from flap.files import cache_root
from flap.job import Job
from flap.models import adapt
from flap.pruning import prune_model
from flap.reporting import Report
from flap.stages import build_stages, check_budget, read_calibration


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ratio: float = 0.2,
    metric: str | None = None,
    structure: str | None = None,
    method: str = "flap",
    compensation: str | None = None,
    overrides: tuple[str, ...] = (),
    **calibration: Any,
) -> Report:
    """Prune `model` in place and return the report; afterwards `model.save_pretrained` writes what loads again.

    `metric`, `structure`, `method` and `compensation` are names of the command line's groups; further keywords are
    keys of `calibration` (dataset, num_samples, seq_len, batch_size); `overrides` takes any other as "key=value".

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    groups = {"method": method, "metric": metric, "structure": structure, "compensation": compensation}
    chosen = [f"{group}={name}" for group, name in groups.items() if name is not None]
    values = [f"calibration.{key}={_quoted(value)}" for key, value in calibration.items()]
    config = _compose([*chosen, *values, f"ratio={ratio}", "run_name=flap.prune", *overrides])
    report = Report.start(asdict(config))
    report.note_devices(model)
    adapter = adapt(model)
    stages = build_stages(config)
    read = read_calibration(config, stages, tokenizer, getattr(model.config, "max_position_embeddings", None))
    budget = check_budget(adapter, stages, config)
    model.eval()
    prune_model(Job(adapter, budget, stages, read, config, report, Cache(cache_root(None), enabled=False)))
    report.finish()
    return report


def _compose(overrides: list[str]) -> FlapConfig:
    """The checked config that the command line would make of these overrides, also inside another Hydra application."""
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
    return "'" + value.replace("'", r"\'") + "'" if isinstance(value, str) else str(value)
