"""Fork the processes (ranks) of one run, with the environment variables that torchrun sets."""

import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

from flap.runtime import ranks
from tests.helpers.forked import command_line, forked


def in_ranks(
    size: int, target: Callable[..., None], *given: Any, timeout: timedelta = timedelta(minutes=2)
) -> list[int]:
    """Call a function in `size` processes, the ranks of one run, and return their exit codes."""
    environments = _environments(size)
    with ThreadPoolExecutor(size) as pool:
        return list(
            pool.map(lambda one: forked(_joined, one, timeout, target, given), environments)
        )


def command_line_in_ranks(
    folders: Sequence[Path], *arguments: str, before: Callable[[], None] | None = None
) -> list[CompletedProcess[str]]:
    """Run `python -m flap` with these arguments in several ranks, each in one of the folders."""

    def run(rank: int) -> CompletedProcess[str]:
        return command_line(folders[rank], *arguments, before=before, **environments[rank])

    environments = _environments(len(folders))
    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(run, range(len(folders))))


def _environments(size: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        master = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        {"RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(size), **master}
        for k in range(size)
    ]


def _joined(
    environment: dict[str, str],
    timeout: timedelta,
    target: Callable[..., None],
    given: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks.join(timeout)
    target(*given)
    ranks.leave()
