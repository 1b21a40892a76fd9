"""Run a program that a model has written, in another process."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

Verdict = Literal["passed", "failed", "timed out"]

GUARD = Path(__file__).with_name("program_guard.py")
PASSED = 77  # exit code of a program that has run to its end, and so has passed all of its tests
# A program gets only these environment variables, so that it cannot read the user's API keys.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_program(program: str, seconds: int) -> Verdict:
    """Run a Python program with the limits of `program_guard`, and return how it has ended.

    The program runs in an empty folder, which is removed afterwards.

    program: the source code. seconds: the maximum wall-clock time, and the maximum processor time.
    """
    command = [sys.executable, "-I", "-B", str(GUARD), str(seconds), str(PASSED)]
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(program.encode(errors="replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            with suppress(ProcessLookupError):  # the process group has ended already
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == -signal.SIGXCPU:
        return "timed out"
    return "passed" if process.returncode == PASSED else "failed"
