"""A streamed run in a process of its own that may be killed at a given moment."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flap.checkpoint.shards as shards
from flap.models.layerwise import LayerwisePass
from flap.pipeline import run
from tests.runs import composed

# Where each moment's call is found; the process is killed as its n-th call ends, before anything goes on.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "first pass, a layer was run and is not noted": (LayerwisePass, "run", 3),
    "second pass, a shard is there and is not noted": (shards, "_write_whole", 5),
    "all was compared and is not in place": (shards, "compare", 1),
}
SERVER = multiprocessing.get_context("forkserver")  # imports once, and forks before any thread is started


def start(folder: Path, arguments: list[str], killed_at: str | None = None) -> tuple[int, list[str]]:
    """Run in `folder`; the exit code, and which layers the two passes worked on: ["run 0", …, "write 0", …]."""
    SERVER.set_forkserver_preload(["tests.killed"])
    folder.mkdir(exist_ok=True)
    (folder / "journal").write_text("")
    process = SERVER.Process(target=_run, args=(folder, arguments, killed_at))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, (folder / "journal").read_text().splitlines()


def _run(folder: Path, arguments: list[str], killed_at: str | None) -> None:
    os.chdir(folder)
    _after(LayerwisePass, "run", lambda of, layer, *rest: _note(f"run {layer}"))
    _after(shards._Shards, "write", lambda of, layer, *rest: _note(f"write {layer}"))
    if killed_at is not None:
        holder, name, number = MOMENTS[killed_at]
        calls = iter(range(1, 1000))
        _after(holder, name, lambda *given: next(calls) == number and os.kill(os.getpid(), signal.SIGKILL))
    run(composed(*arguments), Path("run"))


def _after(holder: Any, name: str, then: Callable[..., Any]) -> None:
    """Call `then` with the same arguments after each call of a function."""
    original = getattr(holder, name)

    def both(*given: Any) -> Any:
        result = original(*given)
        then(*given)
        return result

    setattr(holder, name, both)


def _note(line: str) -> None:
    with Path("journal").open("a") as file:
        file.write(line + "\n")
