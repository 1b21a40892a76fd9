"""Build the command line that continues an interrupted run, or a sweep with unfinished cells.

A cell is one run of a sweep. The console shows this command line after Ctrl-C, and after a sweep in
which some cells have failed.
"""

import re
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString

from flap.config import redacted
from flap.runs.sweeps.callbacks import StudyCallback

# matches a value that needs no quotes in a Hydra override
WITHOUT_QUOTES = re.compile(r"[\w./@-]+", re.ASCII)


def interrupted_line() -> str:
    """Return the line that is printed after Ctrl-C.

    If a run or sweep has begun, the line contains the command that continues it, without secrets.
    """
    if StudyCallback.open_sweep is not None:
        return again_line("interrupted")
    if not HydraConfig.initialized():
        return "interrupted before the run began"
    command = _command_in("hydra.run.dir", Path(HydraConfig.get().run.dir))
    return f"interrupted; continue with: {command}"


def again_line(begin: str) -> str:
    """Return a line with the command that continues a sweep.

    The line is shown if the sweep was interrupted, or if some of its cells (runs) have failed.

    begin: the first words of the line, which say what has happened, such as "interrupted". If no
        sweep has begun, these words are the whole line.
    """
    sweep = StudyCallback.open_sweep
    if sweep is None:
        return begin
    command = _command_in("hydra.sweep.dir", Path(sweep.hydra.sweep.dir))
    return f"{begin}; continue with: {command}"


def _command_in(key: str, folder: Path) -> str:
    """Return the command line of this process without secrets, with the option KEY=FOLDER added.

    key, folder: the config key that sets the folder of the run or sweep, and this folder.
    """
    words = [word for word in redacted(sys.argv[1:]) if not word.startswith(f"{key}=")]
    path = folder.absolute()
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.join(["python", "-m", "flap", *words, f"{key}={_quoted(str(path))}"])


def _quoted(value: str) -> str:
    """Return a value for Hydra's command line, in quotes if it contains special characters."""
    if WITHOUT_QUOTES.fullmatch(value):
        return value
    return QuotedString(value, Quote.single).with_quotes()
