"""The provenance of a run's results: config, library versions, flap's git commit, and device."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flap.config import FlapConfig, redacted
from flap.data import TextsInMemory

LIBRARIES = (
    "flap-pruning",
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "safetensors",
    "lm-eval",
)


def described(config: FlapConfig) -> dict[str, Any]:
    """Return the config of a run as dicts and lists without secrets.

    An object in the config, such as a metric, is replaced by a dict with its options and the name
    of its class (`_target_`). A calibration text that the caller has passed as a list of strings is
    replaced by a label.
    """
    plain = asdict(config)
    if isinstance(config.calibration.dataset, TextsInMemory):
        plain["calibration"]["dataset"] = config.calibration.dataset.label
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and field.type is Any:
            target = f"{type(value).__module__}.{type(value).__qualname__}"
            plain[field.name] = {"_target_": target, **plain[field.name]}
    return dict(redacted(plain))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    of_libraries = {library: version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), **of_libraries}


def device_name(device: torch.device) -> str:
    """Return the name of a device, with the model of a GPU: "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def git_state() -> dict[str, Any]:
    """Return the commit of flap's git checkout, and whether the checkout is "dirty".

    A checkout is dirty if it has uncommitted changes. Both values are None if flap does not run
    from a git checkout.
    """
    try:
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config, the versions and the git state, which are saved with the checkpoint.

    The options of the tracker (a service such as MLflow), and the folders of the cache and of the
    checkpoint, are left out of the config.

    config: the config that `described` returns.
    """
    travels = {**config, "checkpoint": {**config["checkpoint"], "dir": None}}
    del travels["tracking"], travels["cache_dir"]
    return {"config": travels, "versions": versions(), "git": git_state()}


def _git(*arguments: str) -> str:
    checkout = Path(__file__).resolve().parents[2]
    # --git-dir keeps git from finding another repository that contains the installed package
    command = ["git", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
