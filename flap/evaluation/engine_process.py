"""A model in an engine that has a process of its own, which answers requests in turns with another one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from flap.evaluation import engine_speed
from flap.evaluation.base import Numbers

MODULES = {"llama.cpp": "xllamacpp", "vllm": "vllm"}  # what an interpreter has to have


def check_installed(engine: str, python: str | None) -> None:
    """Check that an interpreter has an engine.

    Raises:
        ValueError: there is no such interpreter, or it has not.
    """
    finds = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({MODULES[engine]!r}) is None)"
    interpreter = python or sys.executable
    try:
        found = subprocess.run([interpreter, "-c", finds], check=False, capture_output=True).returncode == 0
    except OSError as error:
        raise ValueError(f"eval.serving.python.{engine}={python}: cannot be run ({error.strerror})") from error
    if not found:
        raise ValueError(
            f"eval.serving.engines={engine}: {interpreter} has no {MODULES[engine]}; install it there, or name the "
            f"interpreter that has it: 'eval.serving.python={{{engine}: DIR/bin/python}}'"
        )


class Engine:
    """A checkpoint that an engine has loaded; `open` starts its process and ends it."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self.process = name, process

    @classmethod
    @contextmanager
    def open(cls, name: str, python: str | None, checkpoint: Path, longest: int, batch_size: int) -> "Iterator[Engine]":
        """Start the process. longest: tokens of a prompt and its answer. batch_size: the most requests at once."""
        place = [str(checkpoint), str(longest), str(batch_size)]
        command = [python or sys.executable, engine_speed.__file__, name, *place]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(
            command, text=True, env=os.environ | threads, stdin=pipe, stdout=pipe, stderr=none
        ) as process:
            try:
                yield cls(name, process)
            finally:
                process.kill()

    def times(self, batch_size: int, prompt_len: int, decode_len: int) -> Numbers:
        """Return the milliseconds to the first new token and for each further one.

        Raises:
            RuntimeError: the engine cannot compute it, with its words.
        """
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it says why below
            print(prompt_len, decode_len, batch_size, file=self.process.stdin, flush=True)
        lines = (line for line in self.process.stdout if line.startswith("{"))
        found = json.loads(next(lines, '{"absent": "its process has ended"}'))
        if "absent" in found:
            raise RuntimeError(f"{self.name}: {found['absent']}")
        return {name: found[name] for name in ("first_token_ms", "token_ms")}
