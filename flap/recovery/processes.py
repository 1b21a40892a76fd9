"""Training in several processes, one for each GPU: torchrun starts them, and accelerate averages their gradients."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.config import ModelConfig, build
from flap.data.temporary_state import seeded
from flap.models import PlacedModel, Source, find_model, open_checkpoint
from flap.recovery.base import Recovery
from flap.recovery.student import Student
from flap.recovery.trainable import trainable
from flap.recovery.training import train
from flap.storage.atomic_files import write_text

COMPRESSED, WINDOWS, WORK = "compressed", "windows.safetensors", "work.json"
WORKER = "flap.recovery"  # the module that each process runs


def train_in_processes(
    recovery: Recovery, model: PlacedModel, source: Source, tokens_NT: Tensor, folder: Path, seed: int
) -> None:
    """As `train`, with a copy of the model in each process. model: not trainable yet; source: of the dense model.

    Raises:
        RuntimeError: a process has failed.
    """
    model.write(folder / COMPRESSED)
    save_file({"tokens_NT": tokens_NT}, folder / WINDOWS)
    dense = {"path": source.path, "dtype": str(source.dtype).removeprefix("torch."), "device": source.device.type}
    work = {
        "recovery": {"_target_": "flap.recovery.Recovery", **asdict(recovery)}, "seed": seed,
        "dense": {"name": "dense", **dense}, "trust_remote_code": source.options["trust_remote_code"],
        "started_by": os.getpid(),
    }  # fmt: skip
    write_text(folder / WORK, json.dumps(work))
    torch.cuda.empty_cache()  # where there is a GPU, the first process needs the room
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={recovery.processes}"]
    code = subprocess.run([*torchrun, "-m", WORKER, str(folder)], check=False).returncode
    if code != 0:
        raise RuntimeError(
            f"recover.processes={recovery.processes}: a process of the training failed, as it says above"
        )


def work_in(folder: Path) -> None:
    """Train as one of the processes that `train_in_processes` has started."""
    work = json.loads((folder / WORK).read_text())
    threading.Thread(target=_end_with, args=(work["started_by"],), daemon=True).start()
    recovery, dense = build("recover", work["recovery"]), ModelConfig(**work["dense"])
    if dense.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    source = find_model(dense, folder, work["trust_remote_code"])
    compressed = open_checkpoint(folder / COMPRESSED, source.device).in_memory()
    bf16 = compressed.model.dtype == torch.bfloat16
    with seeded(work["seed"]), trainable(recovery, compressed.model) as trained:
        student = Student(compressed, source.open(), trained, recovery.words)
        train(student, recovery, load_file(folder / WINDOWS)["tokens_NT"], folder, work["seed"], bf16)


def _end_with(process: int) -> None:
    """End this process when the one that started the training is no more: a new start uses the same folder."""
    while _runs(process):
        time.sleep(1)
    os._exit(1)


def _runs(process: int) -> bool:
    """Return whether a process is there and has not ended: one that nobody has waited for keeps its number."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
