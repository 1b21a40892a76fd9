"""The devices of this machine: which there are, their free memory, and the most precise type for sums."""

import ctypes
import os
import sys

import psutil
import torch

FAST_IN_16_BITS = (
    "amx_bf16",
    "avx512_bf16",
    "bf16",
)  # of processors of Intel, of AMD and Intel, of ARM
ROOM_TO_RUN = 1.5  # of a model's bytes: the weights, and what runs them


def pick_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is cuda if available, else mps, else cpu.

    cuda is the current GPU, by its index: each thread has a current one of its own, also those that read weights.

    Raises:
        ValueError: the named device is not on this machine.
    """
    accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [*(device for device, is_there in accelerators.items() if is_there), "cpu"]
    name = available[0] if name == "auto" else name
    if name not in available:
        raise ValueError(
            f"model.device={name}: not on this machine, which has {', '.join(available)}"
        )
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def multiplies_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has instructions for products in a type; True where torch does not tell."""
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        device.type != "cpu"
        or dtype.itemsize > 2
        or not has
        or any(has.get(name) for name in FAST_IN_16_BITS)
    )


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes; of a host, the share of this process of those of its run there.

    On a GPU, memory that torch has reserved but not used counts.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserved


def widest_float(device: torch.device) -> torch.dtype:
    """Return the type for sums over many tokens and for factorisations: float64; on mps, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def give_back_freed() -> None:
    """Give memory that has been freed on the host back to the system.

    glibc keeps freed blocks of less than 32 MB, such as activations: 0.2 GB after a layer has run. Other systems give
    theirs back, or have no call for it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
