"""Compose configs in Python, and check whether a run's config still agrees with its method.

A method is a file in conf/method/, which sets the metric, the structure, the compensation and the
calibration together. The metric scores units (heads, neurons or experts), the structure selects the
units to remove, and the compensation changes output projections to make up for the removed units.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config.explanations import explain
from flap.config.messages import names_in
from flap.config.schema import FlapConfig, config_dir

GROUPS = ("metric", "structure", "compensation")
# A run keeps the name of its method if its config differs from the method's preset only in these
# options. The options limit what may be pruned, set the seed of metric=random, or set the number of
# tokens on which structure=search measures the effect of pruning.
LIMITS = (
    "round_to",
    "multiple_of_heads",
    "remove_heads",
    "min_heads",
    "min_neurons",
    "seed",
    "tokens",
)
CUSTOM = "custom"


def name_method(config: FlapConfig) -> str:
    """Return the name of a run's method, or "custom" if the config differs from the preset.

    If conf/method/ has no preset with the name `config.method`, return `config.method` unchanged.
    """
    if config.method not in names_in("method"):
        return config.method
    if config.plan is not None:
        return CUSTOM
    preset = _preset_config(config.method)
    if config.calibration.propagate != preset["calibration"]["propagate"]:
        return CUSTOM
    same = all(_essence(getattr(config, group)) == _essence(preset[group]) for group in GROUPS)
    return config.method if same else CUSTOM


@cache
def _preset_config(method: str) -> dict[str, Any]:
    with composing():
        plain = OmegaConf.to_container(compose("config", [f"method={method}"]), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def composing() -> Iterator[None]:
    """Let Hydra's `compose` read conf/ in a `with` block, even inside a running Hydra application.

    Raises:
        ValueError: in the block, Hydra cannot compose a config. The message is one line.
    """
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise ValueError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _essence(choice: Any) -> tuple[str, dict[str, Any]]:
    """Return the class name and the options of a choice, without the options in `LIMITS`.

    choice: the choice of a config group, as a dict with the key `_target_` and the options, or as
        the object that `build` in flap/config/objects.py creates from such a dict.
    """
    node = choice
    if not isinstance(choice, dict):
        node = {"_target_": type(choice).__name__, **asdict(choice)}
    options = {key: value for key, value in node.items() if key != "_target_" and key not in LIMITS}
    return str(node["_target_"]).rpartition(".")[2], options
