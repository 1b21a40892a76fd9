"""The command `python -m flap doctor`, which checks whether flap can run on this machine."""

import argparse
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
    """Check package versions, devices, optional packages, the cache folder and W&B.

    Print a line about each check. Exit with code 1 if a required package is missing or has a wrong
    version, or if flap cannot write to the cache folder.
    """
    argparse.ArgumentParser(
        prog="python -m flap doctor",
        description="Check package versions, devices, optional extras, the cache and W&B.",
    ).parse_args(arguments)
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

    If required packages are missing, or have versions that flap does not allow, return instead a
    line that begins with "problem" and contains a pip command to install the right versions.
    """
    wrong = unmet(needed())
    if wrong:
        return f"problem: pip install {' '.join(wrong)}"
    packages = [f"{name} {version(name)}" for name in NAMED]
    return ", ".join([f"Python {platform.python_version()}", *packages])


def needed(extra: str = "") -> list[Requirement]:
    """Return the packages that flap requires on this platform, with the allowed versions.

    extra: the name of an extra (a group of optional packages), such as "mlflow". The packages of
        this extra are returned as well. If `extra` is empty, only the packages that flap always
        requires are returned.
    """
    requirements = []
    for requirement in map(Requirement, requires(PACKAGE) or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": extra}):
            requirements.append(requirement)
    return requirements


def unmet(needs: list[Requirement]) -> list[str]:
    """Return the requirements that no installed package meets, such as "'torch<3,>=2.6'".

    Each requirement is quoted, so that it can be pasted into a shell.
    """
    installed = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
    missing = []
    for requirement in needs:
        has = installed.get(requirement.name.lower())
        if not has or not requirement.specifier.contains(has, prereleases=True):
            missing.append(f"'{requirement.name}{requirement.specifier}'")
    return missing


def devices() -> str:
    """Return the devices of this machine, with the free memory of each GPU and of the host."""
    import torch  # imported here because importing torch takes seconds

    found = []
    for i in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(i)
        found.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, {decimal(free)} free")
    if torch.backends.mps.is_available():
        found.append("mps")
    memory = psutil.virtual_memory()
    room = f"{decimal(memory.available)} of {decimal(memory.total)} free"
    found.append(f"cpu: {os.cpu_count()} cores, {room}")
    return "; ".join(found)


def extras() -> str:
    """Return for each extra (group of optional packages) whether it is installed: "onnx yes"."""
    names = metadata(PACKAGE).get_all("Provides-Extra") or []
    return ", ".join(f"{name} {'no' if unmet(needed(name)) else 'yes'}" for name in names)


def cache() -> str:
    """Return the folder of the cache, and the free space on its disk.

    If flap cannot write to the folder, return instead a line that begins with "problem" and gives
    the reason.
    """
    try:
        root = cache_root(None).absolute()
    except ValueError as error:
        return f"problem: {error}"
    # If the cache folder does not exist yet, check its closest parent folder that exists. Use
    # os.access, because it returns False for a path inside a folder that this user may not open,
    # where Path.exists may raise an error.
    place = next(place for place in (root, *root.parents) if os.access(place, os.F_OK))
    if place.is_dir() and os.access(place, os.W_OK):
        return f"{root}, {decimal(psutil.disk_usage(str(place)).free)} free"
    return f"problem: {root} cannot be written; set FLAP_CACHE_DIR to a folder that can"


def wandb() -> str:
    """Return the mode that W&B would have in a run with tracking=wandb, for example "online"."""
    try:
        mode = resolve_mode("auto")
    except RuntimeError as error:  # the user has no home directory, where W&B stores its settings
        return f"none: {error}"
    if mode == "offline":
        return "offline; online after `wandb login`, or with WANDB_API_KEY"
    return mode
