"""OmegaConf resolvers: the functions that interpolations in conf/config.yaml call.

Hydra calls these functions before flap checks the config, because Hydra needs their results for the
name of a run's output folder. A target is an upper limit on a size of the pruned model, such as its
bytes. A plan lists the units (heads, neurons or experts) that stay.
"""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flap.config.messages import shown
from flap.config.paths import check_path
from flap.config.schema import FlapConfig, config_dir, targets

# Maximum bytes of `run_name`. A folder's name may have 255 bytes, and Hydra adds the time or the
# number of a job before `run_name`.
LONGEST_RUN_NAME = 230


@cache  # cached, because reading YAML is slow and these files do not change
def _presets() -> list[Any]:
    return [OmegaConf.load(file) for file in sorted((Path(config_dir()) / "model").glob("*.yaml"))]


def model_name(name: str, path: str) -> str:
    """Return `name`, or the last component of `path` if `name` belongs to another model.

    `name` belongs to another model if conf/model/ has a preset of this name with another path. This
    happens if the user overrides `model.path`, but not `model.name`.

    name, path: the values of the options `model.name` and `model.path`.
    """
    check_path("model.name", name)
    check_path("model.path", path)
    foreign = any(preset.name == name and preset.path != path for preset in _presets())
    return Path(path).name if foreign else name


def default_ratio(target: Any, plan: str | None) -> float | None:
    """Return the default of the option `ratio`, which is None if a target or a plan is set."""
    return None if targets(target) or plan is not None else FlapConfig.ratio


def amount(ratio: float | None, target: Any) -> str:
    """Return the ratio, or the targets if there are any, in the form that a run's name contains.

    Examples are "r0.2" for a ratio, and "bytes200000000" for a target.
    """
    return "_".join(f"{name}{value:.12g}" for name, value in targets(target).items()) or f"r{ratio}"


def decided(plan: str | None, choices: str) -> str:
    """Return the part of a run's name that says how the run chooses the units to remove.

    If the run uses a plan, return "plan-" and the name of the plan. Otherwise, return `choices`.

    choices: the names of metric and structure, and the ratio, such as "WIFV_AL-AM_r0.2".
    """
    if plan is None:
        return choices
    check_path("plan", plan)
    path = Path(plan)
    name = path.name
    if path.suffix == ".json":
        name = path.parent.name or path.stem
    return f"plan-{name}"


def folder_name(run_name: str) -> str:
    """Convert the name of a run to a folder's name, for example "org/x_WIFV" to "org-x_WIFV".

    Raises:
        ValueError: the name is too long for a folder.
    """
    size = len(run_name.encode(errors="replace"))
    if size > LONGEST_RUN_NAME:
        raise ValueError(
            f"run_name={shown(run_name)}: must be at most {LONGEST_RUN_NAME} bytes long,"
            f" but has {size:,} bytes; set a shorter run_name"
        )
    return run_name.replace("/", "-")


for _resolver in (model_name, default_ratio, amount, decided, folder_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
