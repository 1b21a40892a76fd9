"""Start a run in another process, kill it at a given step, and return its finished steps."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flap.checkpoint.save
import flap.method.calibration.own_text
from flap.models import Stream, hidden_files
from flap.models.placement.layer_files import LayerFiles
from flap.pipeline import run
from tests.helpers.forked import forked
from tests.helpers.runs import composed

# The steps of these stages are recorded, and so are the steps "write" and "compare", which belong
# to no stage in this list. Steps of the evaluation are not recorded.
NOTED = ("sample", "calibrate", "score", "compress", "prune")
SEQUENCES = 2  # sequences per batch when the model generates calibration text


def start(
    folder: Path, arguments: list[str], killed_at: str | None = None, number: int = 1
) -> tuple[int, list[str]]:
    """Do a run in `folder`, and kill it when the step `killed_at` has ended `number` times.

    If `killed_at` is None, the run is not killed.

    Return the exit code and the names of all finished steps. The names mean:

    "sample": the model has generated a batch of text.
    "calibrate 2": the hidden states have passed layer 2 in the stage `calibrate` (the names are
        similar for the other stages of NOTED).
    "write 2": layer 2 was written to the disk.
    "compare": the checkpoint was verified.
    """
    folder.mkdir(exist_ok=True)
    (folder / "journal").write_text("")
    code = forked(_run, folder, arguments, killed_at, number)
    return code, (folder / "journal").read_text().splitlines()


def _run(folder: Path, arguments: list[str], killed_at: str | None, number: int) -> None:
    os.chdir(folder)
    times = iter(range(1, number + 1))

    def note(step: str) -> None:
        if step.split()[0] not in (*NOTED, "write", "compare"):
            return
        with Path("journal").open("a") as file:
            file.write(step + "\n")
        if step == killed_at and next(times) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def note_advance(stream: Stream, index: int, *given: Any) -> None:
        stage, _, _ = stream.walk.stage.partition(",")
        note(f"{stage} {index}")

    flap.method.calibration.own_text.SEQUENCES = SEQUENCES
    hidden_files.SECONDS_BETWEEN_RECORDS = 0.0  # record progress after every layer
    _after(flap.method.calibration.own_text, "sample", lambda *given: note("sample"))
    _after(Stream, "advance", note_advance)
    _after(LayerFiles, "write", lambda files, index: note(f"write {index}"))
    _after(flap.checkpoint.save, "verify", lambda *given: note("compare"))
    run(composed(*arguments), Path("run"))


def _after(holder: Any, name: str, then: Callable[..., Any]) -> None:
    """Make the function `name` of `holder` call `then` at its end, with the same arguments."""
    original = getattr(holder, name)

    def both(*given: Any) -> Any:
        result = original(*given)
        then(*given)
        return result

    setattr(holder, name, both)
