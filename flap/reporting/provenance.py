"""What made a result: versions of the libraries, commit of the checkout, the device."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("flap-pruning", "torch", "transformers", "datasets", "hydra-core", "safetensors", "lm-eval")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that decide a result."""
    return {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}


def device_name(device: torch.device) -> str:
    """The device, and of a GPU its model: "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def git_state() -> dict[str, Any]:
    """Commit of the checkout that this package runs from, and whether it has uncommitted changes; None outside one."""
    try:
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    checkout = Path(__file__).resolve().parents[2]
    # --git-dir: an installed package may lie inside somebody else's repository
    command = ["git", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
