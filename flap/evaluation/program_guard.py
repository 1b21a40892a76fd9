"""Run one program with limits, in a separate process.

`run_program` starts this file as a script. The script imports nothing from flap. It reads the
program from its standard input, and its exit code says whether the program has passed its tests.
The limits protect the machine against mistakes in a program, not against attacks
(docs/evaluation.md).
"""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

BYTES = 2 * 2**30  # maximum memory of a program, in bytes
NEW_USER_NAMESPACE = 0x10000000  # CLONE_NEWUSER
NEW_NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET

# Audit events whose names begin with these prefixes are refused. Python reports an event to an
# audit hook (`deny`) before the event happens: https://docs.python.org/3/library/audit_events.html
REFUSED = ("os.", "shutil.", "socket.", "subprocess.", "pty.")
# events that are allowed although their names begin with a prefix in REFUSED, because Python itself
# needs these events for imports
ALLOWED = {"os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv"}
# the flags of `os.open` with which a file can be written
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read a program from standard input, and run it.

    The command-line arguments are the maximum seconds of processor time, and the exit code for a
    program that runs to its end. If the program raises an exception, such as `SystemExit`, the exit
    code is 1.
    """
    seconds, passed = map(int, sys.argv[1:])
    program = sys.stdin.buffer.read().decode()
    leave_the_network()
    limit(seconds)
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.addaudithook(deny)
    try:
        exec(compile(program, "<program>", "exec"), vars(module))
    except BaseException:  # includes SystemExit, with which a program could skip its tests
        os._exit(1)
    os._exit(passed)


def leave_the_network() -> None:
    """Move this process to a network namespace that has no network, if the system allows this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(NEW_USER_NAMESPACE | NEW_NETWORK_NAMESPACE)


def limit(seconds: int) -> None:
    """Limit memory and processor time, and forbid writing to files and starting processes."""
    limits = {
        resource.RLIMIT_AS: BYTES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        with suppress(ValueError, OSError):  # macOS lacks some of these limits
            resource.setrlimit(kind, (most, most))


def deny(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise an error if Python is about to write a file, open a connection or start a process."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if writes or (event.startswith(REFUSED) and event not in ALLOWED):
        raise PermissionError(f"a measured program may not do this: {event}")


if __name__ == "__main__":
    main()
