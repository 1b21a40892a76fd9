"""Fork processes that already have all imports, which is faster than starting an interpreter."""

import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

import scipy.stats  # noqa: F401 - imported here, so that forked processes do not have to import it
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import CONFIG_MAPPING

import flap.cli
import flap.pipeline
import flap.results.study_files
import flap.results.tracking
import tests.helpers.pixel  # noqa: F401 - this import replaces the function that draws layers.png
from flap.modeling.families import FAMILIES, TOWERS

for family in {*FAMILIES, *TOWERS} & {*CONFIG_MAPPING}:
    # Import the configs of all families now, so that no forked process has to import them.
    CONFIG_MAPPING[family]
# The garbage collector skips frozen objects, so forked processes share the memory of the imports.
gc.freeze()
# The server is a process that imports everything once, has no threads, and forks a new process for
# each call of `forked`.
SERVER = multiprocessing.get_context("forkserver")


def forked(target: Callable[..., None], *given: Any) -> int:
    """Call a function in a separate process, and return the exit code of the process."""
    SERVER.set_forkserver_preload([__name__])
    process = SERVER.Process(target=target, args=given)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def command_line(
    folder: Path,
    *arguments: str,
    before: Callable[[], None] | None = None,
    module: str = "flap",
    **environment: str,
) -> CompletedProcess[str]:
    """Run `python -m flap` with these arguments in a folder, in a forked process.

    module: the module to run instead of flap; it must not have been imported yet.
    before: a function that the process calls before it runs the module.
    """
    with TemporaryDirectory() as said:
        code = forked(
            _command_line, folder, module, arguments, dict(os.environ) | environment, said, before
        )
        stdout, stderr = ((Path(said) / name).read_text() for name in ("stdout", "stderr"))
    return CompletedProcess([module, *arguments], code, stdout, stderr)


def _command_line(
    folder: Path,
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    before: Callable[[], None] | None,
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    if before is not None:
        before()
    if module == "flap":
        flap.cli.main()
    else:
        runpy.run_module(module, run_name="__main__")
