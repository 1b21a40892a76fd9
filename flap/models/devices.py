"""The devices of this machine, and what they have room for."""

import psutil
import torch


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else mps, else cpu.

    Raises:
        ValueError: the named device is not on this machine.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in found.items() if there))
    if not found[name]:
        there = ", ".join(device for device, is_there in found.items() if is_there)
        raise ValueError(f"model.device={name}: not on this machine, which has {there}")
    return torch.device(name)


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can still give. Of a GPU: what its driver calls free, and what torch holds unused."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held
