"""Which code made a result: versions of the libraries, commit of the checkout."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("flap-pruning", "torch", "transformers", "datasets", "hydra-core", "safetensors")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that decide a result."""
    return {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}


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
