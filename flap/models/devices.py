"""The devices of this machine: names, free memory, and supported dtypes."""

import ctypes
import os
import sys

import psutil
import torch

# CPU features for bfloat16 products: of Intel, of AMD and Intel, and of ARM.
FAST_IN_16_BITS = ("amx_bf16", "avx512_bf16", "bf16")
# The memory that running a model takes, as a multiple of the bytes of its weights.
ROOM_TO_RUN = 1.5


def pick_device(name: str) -> torch.device:
    """Return the device with this name. `auto` is cuda if available, else mps, else cpu.

    The name cuda gives the current GPU with its index. The current GPU may differ between threads,
    and weights are read in several threads.

    Raises:
        ValueError: The device is not on this machine.
    """
    accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [device for device, is_there in accelerators.items() if is_there]
    available.append("cpu")
    name = available[0] if name == "auto" else name
    if name not in available:
        raise ValueError(
            f"model.device={name}: not on this machine, which has {', '.join(available)}"
        )
    if name == "cuda":
        return torch.device(name, torch.cuda.current_device())
    return torch.device(name)


def multiplies_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has instructions for products in a dtype.

    Returns True if torch does not report the features of the CPU.
    """
    if device.type != "cpu" or dtype.itemsize > 2:
        return True
    features: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not features or any(features.get(name) for name in FAST_IN_16_BITS)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes.

    The memory of a host is divided equally among the processes of a run on it. On a GPU, memory
    that torch has reserved but does not use is free.
    """
    if device.type != "cuda":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return int(psutil.virtual_memory().available) // processes
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + unused


def widest_float(device: torch.device) -> torch.dtype:
    """Return the dtype for sums over many tokens and for factorisations.

    The dtype is float64, except on mps, which supports only float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def give_back_freed() -> None:
    """Return freed host memory to the operating system.

    glibc does not return freed blocks of less than 32 MB, such as activations, which are 0.2 GB
    after a layer has run. Other systems return freed memory by themselves, or have no function for
    it.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
