"""The command `python -m flap doctor` checks versions, devices, extras, the cache and W&B."""

import os
import platform
from importlib.metadata import distributions, metadata, requires, version

import psutil
from packaging.requirements import Requirement
from rich.filesize import decimal

from flap.results.tracking.login import resolve_mode
from flap.storage import cache_root

PACKAGE = "flap-pruning"
NAMED = (PACKAGE, "torch", "transformers", "datasets", "lm-eval", "hydra-core")


def main(arguments: list[str]) -> None:
    """Print one line for each check.

    Exit with code 1 if a package is missing, or if the cache cannot be written.
    """
    lines = {
        "versions": installed_versions(),
        "devices": devices(),
        "extras": extras(),
        "cache": cache(),
        "W&B": wandb(),
    }
    print(*(f"{name:<10}{text}" for name, text in lines.items()), sep="\n")
    raise SystemExit(any(text.startswith("problem: ") for text in lines.values()))


def installed_versions() -> str:
    """Return the versions of the most important packages.

    If a package is missing or has a version that flap does not allow, return how to install it.
    """
    if wrong := unmet(needed()):
        return f"problem: pip install {' '.join(wrong)}"
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in NAMED)]
    )


def needed(extra: str = "") -> list[Requirement]:
    """Return the requirements of flap on this platform.

    extra: also those of this extra.
    """
    requirements = map(Requirement, requires(PACKAGE) or [])
    return [
        one for one in requirements if one.marker is None or one.marker.evaluate({"extra": extra})
    ]


def unmet(needs: list[Requirement]) -> list[str]:
    """Return the requirements that are not met, quoted for a shell: "'torch<3,>=2.6'"."""
    installed = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
    there = ((one, installed.get(one.name.lower())) for one in needs)
    return [
        f"'{one.name}{one.specifier}'"
        for one, has in there
        if not (has and one.specifier.contains(has, True))
    ]


def devices() -> str:
    """Return the devices of this machine with their free memory."""
    import torch  # imported here because it takes seconds

    free = [decimal(torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count())]
    devices = [
        f"cuda:{i} {torch.cuda.get_device_name(i)}, {room} free" for i, room in enumerate(free)
    ]
    memory = psutil.virtual_memory()
    room = f"{decimal(memory.available)} of {decimal(memory.total)} free"
    return "; ".join(
        [
            *devices,
            *["mps"] * torch.backends.mps.is_available(),
            f"cpu: {os.cpu_count()} cores, {room}",
        ]
    )


def extras() -> str:
    """Return for each extra whether all of its packages are installed."""
    names = metadata(PACKAGE).get_all("Provides-Extra") or []
    return ", ".join(f"{name} {'no' if unmet(needed(name)) else 'yes'}" for name in names)


def cache() -> str:
    """Return the folder of the cache, and the free space there."""
    try:
        root = cache_root(None).absolute()
    except ValueError as error:
        return f"problem: {error}"
    # unlike Path.exists, this is False for a folder that may not be looked into
    place = next(place for place in (root, *root.parents) if os.access(place, os.F_OK))
    if place.is_dir() and os.access(place, os.W_OK):
        return f"{root}, {decimal(psutil.disk_usage(str(place)).free)} free"
    return f"problem: {root} cannot be written; set FLAP_CACHE_DIR to a folder that can"


def wandb() -> str:
    """Return the mode that tracking=wandb would have."""
    try:
        mode = resolve_mode("auto")
    except (
        RuntimeError
    ) as error:  # W&B looks for its settings in the user's home, and there is none
        return f"none: {error}"
    return (
        "offline; online after `wandb login`, or with WANDB_API_KEY" if mode == "offline" else mode
    )
