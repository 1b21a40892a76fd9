"""Check whether the choices of a run are those of the method that it names."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flap.config.schema import FlapConfig, config_dir

GROUPS = ("metric", "structure", "compensation")
# Options that do not make another method: limits of pruning, and how much the search measures.
LIMITS = (
    "round_to", "multiple_of_heads", "remove_heads", "min_heads", "min_neurons", "seed", "tokens",
)  # fmt: skip
CUSTOM = "custom"


def name_method(config: FlapConfig) -> str:
    """Return the method's name if the run has its preset's choices, else "custom"; a name without a preset is kept."""
    if not (Path(config_dir()) / "method" / f"{config.method}.yaml").is_file():
        return config.method
    preset = _preset(config.method)
    same = all(_essence(getattr(config, group)) == _essence(preset[group]) for group in GROUPS)
    return config.method if same and config.calibration.propagate == preset["propagate"] else CUSTOM


@cache
def _preset(method: str) -> dict[str, Any]:
    """Return the choices of a method: its YAML file's, and those of config.yaml that it does not override."""
    conf = Path(config_dir())
    plain = OmegaConf.to_container(OmegaConf.load(conf / "method" / f"{method}.yaml"), resolve=False)
    assert isinstance(plain, dict)
    names = _defaults(conf / "config.yaml", "") | _defaults(conf / "method" / f"{method}.yaml", "override /")
    choices = {group: _choice(conf / group, names[group]) for group in GROUPS}
    return choices | {"propagate": plain.get("calibration", {}).get("propagate", "dense")}


def _choice(folder: Path, name: str) -> dict[str, Any]:
    """Return what a group's choice says, with what all of the group share."""
    files = [path for path in (folder / "_base.yaml", folder / f"{name}.yaml") if path.is_file()]
    plain = OmegaConf.to_container(OmegaConf.unsafe_merge(*map(OmegaConf.load, files)), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "defaults"}


def _defaults(path: Path, prefix: str) -> dict[str, str]:
    """Return the option of each group in a YAML file's defaults list."""
    defaults = OmegaConf.select(OmegaConf.load(path), "defaults") or []
    entries = [entry for entry in defaults if not isinstance(entry, str)]
    return {str(key).removeprefix(prefix): str(value) for entry in entries for key, value in entry.items()}


def _essence(choice: Any) -> tuple[str, dict[str, Any]]:
    """Return the class name of a choice (a node or an object) and its options, without `LIMITS`."""
    node = choice if isinstance(choice, dict) else {"_target_": type(choice).__name__, **asdict(choice)}
    options = {key: value for key, value in node.items() if key != "_target_" and key not in LIMITS}
    return str(node["_target_"]).rpartition(".")[2], options
