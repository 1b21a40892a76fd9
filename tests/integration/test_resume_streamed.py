"""A killed run with model.placement=stream resumes after its last recorded step.

With this placement, only one layer of the model is in memory at a time. The results of the resumed
run are byte-identical to those of an uninterrupted run. tests/helpers/killed.py explains the names
of the steps.
"""

import json
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cases import tiny_model
from tests.helpers.killed import start
from tests.helpers.marks import quick


def steps_of(*kinds: str) -> list[str]:
    """Return the step names of a run that does one step of each kind for each of four layers.

    For example, the kinds "prune" and "write" give "prune 0", "write 0", "prune 1" and so on.
    """
    steps = []
    for layer in range(4):
        steps += [f"{kind} {layer}" for kind in kinds]
    return steps


CALIBRATE = steps_of("calibrate")
WRITE = steps_of("write")
WHOLE = [*CALIBRATE, *WRITE, "compare"]
# With Wanda-sp, the run prunes a layer, passes the hidden states through the layer, and writes the
# layer, before it goes on to the next layer.
PRUNE_AND_WRITE = steps_of("prune", "write")
IN_SEQUENCE = [*PRUNE_AND_WRITE, "compare"]
# With Wanda-sp and random scores, a killed run starts again at the first layer, because the scores
# of all layers come from one random generator. At the end, each layer is written again with biases
# of zeros in the Linear modules that had no bias, because the config of the stock checkpoint
# requires these biases.
RANDOM = [*PRUNE_AND_WRITE, *WRITE, "compare"]
# If a run fits a linear compensation, two sets of windows pass through each layer: windows for the
# fit, and held-out windows for choosing the ridge penalty of the fit. So each layer has two steps
# of the same kind.
FITTED = [*steps_of("compress", "compress", "write"), "compare"]
CALIBRATED_FITTED = [*CALIBRATE, *FITTED]
CLOSED_FORM = [*steps_of("score"), *FITTED]
IN_SEQUENCE_FITTED = [*steps_of("prune", "prune", "write"), *WRITE, "compare"]


@pytest.fixture(scope="module")
def arguments(base: list[str]) -> list[str]:
    arguments = [one for one in base if not one.startswith("eval")]
    return [*arguments, "eval=[none]", "model.placement=stream", "cache_dir=cache", "ratio=0.4"]


class WholeRun(NamedTuple):
    """The steps of an uninterrupted run, and the content of the files that the run has written."""

    steps: list[str]
    files: dict[str, bytes]


Undisturbed: TypeAlias = Callable[[str], WholeRun]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return a function that does an uninterrupted run with the options `choice`.

    If the function is called again with the same options, it returns the result of the first call.
    """

    @cache
    def run(choice: str) -> WholeRun:
        folder = tmp_path_factory.mktemp("undisturbed")
        code, steps = start(folder, [*arguments, *choice.split()])
        assert code == 0
        return WholeRun(steps, written(folder))

    return run


def written(folder: Path) -> dict[str, bytes]:
    """Return the contents of the checkpoint and plan.json, and the report's entry "repairs"."""
    run = folder / "run"
    contents = {file.name: file.read_bytes() for file in (run / "checkpoint").iterdir()}
    contents["plan.json"] = (run / "plan.json").read_bytes()
    report = json.loads((run / "report.json").read_text())
    contents["repairs"] = json.dumps(report["repairs"]).encode()
    return contents


class Kill(NamedTuple):
    """A run with the options `choice` that is killed after the step `step`.

    whole: the steps of an uninterrupted run with these options.
    left: the steps that the resumed run must do.
    """

    choice: str
    whole: list[str]
    step: str
    left: list[str]


KILLS = [
    # This run is killed after it has calibrated layer 2, but before it has recorded this step.
    Kill("method=flap", WHOLE, "calibrate 2", WHOLE[2:]),
    # This run is killed after it has pruned layer 1 in memory, but before it has written the layer.
    Kill("method=wanda_sp", IN_SEQUENCE, "prune 1", IN_SEQUENCE[2:]),
    # The resumed run reads from its working directory what the killed run has recorded about the
    # fits of earlier layers.
    Kill("metric=OBS compensation=linear", CLOSED_FORM, "write 1", CLOSED_FORM[7:]),
    # This run is killed after it has written layer 2, but before it has recorded this step.
    Kill("method=flap", WHOLE, "write 2", WHOLE[6:]),
    Kill("method=wanda_sp metric=random compensation=bias", RANDOM, "prune 1", RANDOM),
    # The resumed run reads what the killed run has recorded about the fits of all layers.
    Kill("compensation=linear", CALIBRATED_FITTED, "compare", FITTED[12:]),
    Kill("method=wanda_sp", IN_SEQUENCE, "write 2", IN_SEQUENCE[4:]),
    Kill("compensation=linear", CALIBRATED_FITTED, "write 2", FITTED[6:]),
    Kill("metric=OBS compensation=linear", CLOSED_FORM, "score 2", CLOSED_FORM[2:]),
    Kill(
        "method=wanda_sp compensation=linear",
        IN_SEQUENCE_FITTED,
        "write 2",
        IN_SEQUENCE_FITTED[6:],
    ),
]


def remains(folder: Path) -> set[str]:
    """Return the names of all files in a run's folder and its working directories, except locks."""
    names = set()
    for parent in (folder / "run", folder / "cache" / "streams"):
        names |= {path.name for path in parent.iterdir() if path.suffix != ".lock"}
    return names


@pytest.mark.parametrize("kill", quick(1, KILLS))
def test_a_killed_run_goes_on(
    kill: Kill, arguments: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    expected = undisturbed(kill.choice)
    assert expected.steps == kill.whole
    arguments = [*arguments, *kill.choice.split()]
    done = kill.whole[: kill.whole.index(kill.step) + 1]
    assert start(tmp_path, arguments, kill.step) == (-signal.SIGKILL, done)
    assert not (tmp_path / "run" / "checkpoint").exists()

    assert start(tmp_path, arguments) == (0, kill.left)
    assert written(tmp_path) == expected.files
    assert remains(tmp_path) == {
        "checkpoint",
        "layers.png",
        "plan.json",
        "pruned.json",
        "report.json",
        "report.md",
    }


def emptied(text: bytes) -> bytes:
    return b""


def flipped(text: bytes) -> bytes:
    """Change one digit of a text, or one byte of a binary file. The file stays readable."""
    at = max(text.rfind(digit) for digit in (b"1", b"2", b"3"))
    return text[:at] + b"4" + text[at + 1 :]


class DamagedNote(NamedTuple):
    """A killed run, and a record of its progress that is damaged before the run is resumed.

    killed_at: the step after which the run is killed.
    note: the name of the file with the damaged record.
    left: the steps that the resumed run must do.
    """

    choice: str
    killed_at: str
    note: str
    left: list[str]


DAMAGED_NOTES = [
    DamagedNote("method=flap", "calibrate 2", "statistics-0", WHOLE),
    DamagedNote("method=wanda_sp", "write 2", "decided-1", IN_SEQUENCE),
    DamagedNote("compensation=linear", "compare", "fits-3", FITTED),
    DamagedNote("metric=OBS compensation=linear", "score 2", "scores-1", CLOSED_FORM),
]


@pytest.mark.parametrize("damage", quick(1, [emptied, flipped]))
@pytest.mark.parametrize("case", quick(1, DAMAGED_NOTES))
def test_a_damaged_note_of_a_killed_run_is_made_again(
    case: DamagedNote,
    damage: Callable[[bytes], bytes],
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    expected = undisturbed(case.choice)
    arguments = [*arguments, *case.choice.split()]
    code, _ = start(tmp_path, arguments, case.killed_at)
    assert code == -signal.SIGKILL
    [file] = (tmp_path / "cache" / "streams").rglob(case.note)
    file.write_bytes(damage(file.read_bytes()))
    assert start(tmp_path, arguments) == (0, case.left)
    assert written(tmp_path) == expected.files


@pytest.mark.long
def test_a_killed_mixture(
    arguments: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A killed run on Mixtral, when resumed, writes the same files as an uninterrupted run.

    The linear compensation adds output biases to the experts of this model.
    """
    model = tmp_path / "mixtral"
    tiny_model("mixtral").save_pretrained(model)
    tokenizer.save_pretrained(model)
    fits = ["metric=OBS", "compensation=linear", "calibration.num_samples=20"]
    arguments = [*arguments, f"model.path={model}", *fits]
    code, _ = start(tmp_path / "whole", arguments)
    assert code == 0

    code, _ = start(tmp_path / "killed", arguments, "write 1")
    assert code == -signal.SIGKILL
    code, steps = start(tmp_path / "killed", arguments)
    assert code == 0
    assert "write 0" not in steps
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


@pytest.mark.long
def test_a_killed_run_leaves_nothing_to_another_one(
    arguments: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A run at another ratio, or with resume=false, does not continue the killed run's work."""
    arguments = [*arguments, "method=wanda_sp"]
    start(tmp_path, arguments, "write 2")
    assert start(tmp_path, [*arguments, "ratio=0.3"]) == (0, IN_SEQUENCE)
    assert start(tmp_path, [*arguments, "resume=false"]) == (0, IN_SEQUENCE)

    files = written(tmp_path)
    expected = undisturbed("method=wanda_sp").files
    assert files.keys() == expected.keys()
    for name in files.keys() - {"flap.json"}:
        assert files[name] == expected[name]
