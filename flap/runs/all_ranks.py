"""The processes of a run: whether all of them see the same model, texts and folders, and have devices of their own."""

import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from flap.config import require
from flap.results import described, device_name
from flap.results.provenance import versions
from flap.runs.run import Run
from flap.storage import digest, ranks
from flap.storage.cache import file_sha256


def check_alike(run: Run, run_dir: Path | None) -> None:
    """Check that all processes have the same packages, inputs, config and folders, and what they need to share a run.

    Raises:
        ValueError: they do not; names the first process that is not as the first one of all.
    """
    if ranks.size() == 1:
        return
    _check_equal(_facts(run))
    if not run.source.loaded:
        _check_equal(_contents(Path(run.source.path)))
    _check_devices(run)
    for field, folder in {"cache_dir": run.cache.root, "hydra.run.dir": run_dir}.items():
        if folder is not None:
            _check_folder(field, folder)
    if run.choices.need_windows:
        allowed = f"{ranks.size()} windows or more, one for each process"
        require(
            _num_windows(run) >= ranks.size(), "calibration.num_samples", run.config.calibration.num_samples, allowed
        )


def _facts(run: Run) -> dict[str, Any]:
    """Return what has to be the same for all processes, by what an error message calls it."""
    device = run.source.device
    model = {k: v for k, v in run.source.fingerprint.items() if k not in ("commit", "files")}
    return {
        **{f"the version of {library}": version for library, version in versions().items()},
        "model.device": device.type if device.type != "cuda" else torch.cuda.get_device_name(device),
        "the config": digest(described(run.config)),
        **{f"the content of {name}": one for name, one in run.inputs.items() if name != "model"},
        "the model": digest(model),
    }


def _contents(folder: Path) -> dict[str, str]:
    """Return digests of the model's files, by path; none if all processes see the same copy of them.

    Files with equal inodes and times are one copy, on a shared disk or one machine: nobody sets the time of a change
    (ctime), as rsync sets that of the content. Other copies are read in full; processes that see one share it out.
    """
    files = sorted(file for file in folder.glob("*") if file.is_file())
    states = [(file.name, file.stat()) for file in files]
    copy = digest([[name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in states])
    copies = ranks.gather(copy)
    if len({*copies}) == 1:
        return {}
    sharing = [rank for rank, other in enumerate(copies) if other == copy]
    own = {str(file): file_sha256(file)[:20] for file in files[sharing.index(ranks.rank()) :: len(sharing)]}
    everywhere = ranks.gather(own)
    return {path: sha256 for rank in sharing for path, sha256 in everywhere[rank].items()}


def _check_equal(facts: Mapping[str, Any]) -> None:
    for other, (where, theirs) in enumerate(ranks.gather((ranks.name(), facts))):
        if not other:
            first, expected = where, theirs
        for name in {**expected, **theirs}:
            if (value := theirs.get(name)) != expected.get(name):
                raise ValueError(f"{where}: {name} is not as on {first} ({value}, {expected.get(name)})")


def _check_devices(run: Run) -> None:
    """Check that no two processes share a GPU, and that weights are not spread over what they share.

    Raises:
        ValueError: they do.
    """
    source, placed = run.source, run.source.placed
    spread, on_gpu = not (placed.whole or placed.streams), source.device.type == "cuda"
    used = range(torch.cuda.device_count()) if spread else [source.device.index or 0]
    own = [str(torch.cuda.get_device_properties(i).uuid) for i in used] if on_gpu else []
    everywhere = [gpu for gpus in ranks.gather(own) for gpu in gpus]
    disjoint = len(set(everywhere)) == len(everywhere)
    alone = "device or stream with several processes, unless each one sees GPUs of its own (CUDA_VISIBLE_DEVICES)"
    require(not spread or (on_gpu and disjoint), "model.placement", source.placement, alone)
    require(disjoint, "processes", ranks.size(), f"{len(set(everywhere))} at most, one for each GPU")


def _check_folder(field: str, folder: Path) -> None:
    """Check that all processes see what the first one writes into a folder.

    Raises:
        ValueError: one does not.
    """
    mark = ranks.from_first(lambda: _marked(folder))
    seen = ranks.gather((ranks.name(), mark.exists()))
    ranks.from_first(lambda: mark.unlink(missing_ok=True))
    blind = [where for where, there in seen if not there]
    if seen[0][1] and blind:  # else nobody can write there, which others say
        raise ValueError(f"{field}={folder}: {blind[0]} does not see it; expected a folder that all processes share")


def _marked(folder: Path) -> Path:
    mark = folder / f".shared-{uuid4().hex[:8]}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return mark


def _num_windows(run: Run) -> int:
    counts = [sum(run.windows.counts(seq_len)) for seq_len in run.windows.lengths] if run.windows else []
    return sum(counts)


def devices_of_ranks(device: torch.device) -> list[str]:
    """Return the device of each process and its machine, for the report; empty for a run of one process."""
    return ranks.gather(f"{device_name(device)} of {platform.node()}") if ranks.size() > 1 else []
