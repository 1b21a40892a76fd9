"""Make a process respect file permissions, even if the tests run as root."""

import ctypes
import os

VERSION = 0x20080522  # version of the Linux capability structures with 64 bits
OVERRIDES = 1 << 1 | 1 << 2  # the bits of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def bound_by_permissions() -> None:
    """Give up root's right to read and write every file, for the rest of this process."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    # Six masks of capabilities: the effective, the permitted and the inheritable mask for the low
    # 32 bits, and the same three masks for the high 32 bits.
    data = (ctypes.c_uint32 * 6)()
    assert library.capget(header, data) == 0
    data[0] &= ~OVERRIDES
    data[1] &= ~OVERRIDES  # the permitted mask, which os.access checks
    assert library.capset(header, data) == 0
