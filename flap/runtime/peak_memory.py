"""Measure the peak memory of this process."""

import platform
import resource

import torch


def peak_memory() -> dict[str, int | None]:
    """Return the peak memory of this process in bytes, on the "host" and on the "device".

    The value of "device" is the sum of the peaks of all GPUs, or None without a GPU.
    """
    unit = 1 if platform.system() == "Darwin" else 1024
    gpus = range(torch.cuda.device_count())
    return {
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "device": sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
    }


def reset_peak_memory() -> None:
    """Reset the peak memory of the GPUs, so that earlier runs in this process do not count."""
    for gpu in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(gpu)
