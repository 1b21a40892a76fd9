"""Hydra's record of a sweep, multirun.yaml: the command line that started it, and how many cells it has."""

import shlex
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

RECORD = "multirun.yaml"
GRID = "BasicSweeper"  # Hydra's own sweeper, whose cells are the product of all choices


def read_sweep(folder: Path) -> tuple[str, int]:
    """Return the command line, empty if there is no record, and the number of planned cells, 0 if it is unknown."""
    path = folder / RECORD
    try:
        record: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        hydra = record["hydra"]
        task, own = hydra["overrides"]["task"], hydra["overrides"]["hydra"]
        own = [word for word in own if word != "hydra.mode=MULTIRUN"]
        command = shlex.join(["python", "-m", "flap", "-m", *task, *own])
    except (OSError, ValueError, LookupError, TypeError, YAMLError, OmegaConfBaseException):  # missing or damaged
        return "", 0
    return command, _planned(hydra.get("sweeper") or {}, task)


def _planned(sweeper: dict[str, Any], task: list[str]) -> int:
    """Return the product of the numbers of values of all overrides: those of the sweeper, then of the command line."""
    if not str(sweeper.get("_target_")).endswith(GRID):
        return 0
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *task])
        chosen = {override.key_or_group: override for override in overrides}.values()
        return prod(len([*one.sweep_iterator()]) for one in chosen if one.is_sweep_override())
    except HydraException:  # as glob(*), whose choices only the sweep itself knows
        return 0
