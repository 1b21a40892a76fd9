"""The devices of this machine: names, free memory, and supported dtypes."""

import ctypes
import os
import sys

import psutil
import torch

# Names that torch gives to CPU instructions that multiply in bfloat16. Some Intel CPUs have
# amx_bf16, some AMD and Intel CPUs have avx512_bf16, and some ARM CPUs have bf16.
FAST_IN_16_BITS = ("amx_bf16", "avx512_bf16", "bf16")
# Memory that is needed to run a model, as a multiple of the size of its weights.
ROOM_TO_RUN = 1.5


def pick_device(name: str) -> torch.device:
    """Return the device with this name, or for `auto` the first available of cuda, mps and cpu.

    For cuda, the result has the index of the current GPU. Without an index, torch could choose
    different GPUs, because the current GPU may differ between the threads that read weights.

    Raises:
        ValueError: the device is not on this machine.
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
    """Return whether a device has fast instructions for multiplications in a dtype.

    Return True for all devices except CPUs, for all dtypes of more than 16 bits, and for a CPU
    whose instructions torch does not report. In all other cases, return whether the CPU has one of
    the instructions FAST_IN_16_BITS, even if the dtype is not bfloat16.
    """
    if device.type != "cpu" or dtype.itemsize > 2:
        return True
    features: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not features or any(features.get(name) for name in FAST_IN_16_BITS)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes.

    On the host, free memory is divided equally among the processes of the run on this host. On a
    GPU, memory that torch's allocator has reserved but not allocated to tensors counts as free.
    """
    if device.type != "cuda":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return int(psutil.virtual_memory().available) // processes
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + unused


def widest_float(device: torch.device) -> torch.dtype:
    """Return the dtype for sums over many tokens and for matrix factorisations.

    The dtype is float64, except on mps, which supports only float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def give_back_freed() -> None:
    """Return freed host memory to the operating system.

    glibc may keep freed blocks of less than 32 MB, such as activations. After a layer has run,
    these freed blocks can take 0.2 GB. On other operating systems and with other C libraries, this
    function does nothing, because these systems and libraries return freed memory by themselves, or
    have no function that returns it.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
