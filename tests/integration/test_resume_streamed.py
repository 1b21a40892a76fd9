"""A streamed run that is killed at any moment goes on from the last finished layer, to the same bytes."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cases import tiny_model
from tests.helpers.killed import start

CALIBRATE, PRUNE, WRITE = (
    [f"{step} {i}" for i in range(4)] for step in ("calibrate", "prune", "write")
)
WHOLE = [*CALIBRATE, *WRITE, "compare"]
# Wanda-sp: each layer is pruned and run before it is written
IN_SEQUENCE = [step for pair in zip(PRUNE, WRITE, strict=True) for step in pair] + ["compare"]
# random scores are drawn layer after layer; and the biases that the model's own config asks for come last
RANDOM = [*IN_SEQUENCE[:-1], *WRITE, "compare"]
# with covariances windows walk along, those to fit on and those held out
FITTED = [step for i in range(4) for step in (*2 * [f"compress {i}"], f"write {i}")] + ["compare"]
CLOSED_FORM = [f"score {i}" for i in range(4)] + FITTED
LONG = pytest.mark.long
IN_SEQUENCE_FITTED = [
    step for i in range(4) for step in (*2 * [f"prune {i}"], f"write {i}")
] + RANDOM[8:]


@pytest.fixture(scope="module")
def arguments(base: list[str]) -> list[str]:
    arguments = [one for one in base if not one.startswith("eval")]
    return [*arguments, "eval=[none]", "model.placement=stream", "cache_dir=cache", "ratio=0.4"]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory):
    """What whole runs leave, by the choice that is made beside the arguments."""
    found: dict[str, tuple[list[str], dict[str, bytes]]] = {}

    def run(choice: str) -> tuple[list[str], dict[str, bytes]]:
        if choice not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            code, steps = start(folder, [*arguments, *choice.split()])
            assert code == 0
            found[choice] = steps, written(folder)
        return found[choice]

    return run


def written(folder: Path) -> dict[str, bytes]:
    """All files of the checkpoint, the plan and what fits report; relative paths make runs of other folders alike."""
    files = [folder / "run" / "plan.json", *(folder / "run" / "checkpoint").iterdir()]
    repairs = json.loads((folder / "run" / "report.json").read_text())["repairs"]
    return {file.name: file.read_bytes() for file in files} | {
        "repairs": json.dumps(repairs).encode()
    }


@pytest.mark.parametrize(
    ("choice", "whole", "killed_at", "left"),
    [
        ("method=flap", WHOLE, "calibrate 2", WHOLE[2:]),  # the layer was run and is not noted
        ("method=flap", WHOLE, "write 2", WHOLE[6:]),  # the layer is there and is not noted
        (
            "method=wanda_sp",
            IN_SEQUENCE,
            "prune 1",
            IN_SEQUENCE[2:],
        ),  # the layer was pruned in memory alone
        pytest.param("method=wanda_sp", IN_SEQUENCE, "write 2", IN_SEQUENCE[4:], marks=LONG),
        ("method=wanda_sp metric=random compensation=bias", RANDOM, "prune 1", RANDOM),
        pytest.param("compensation=linear", CALIBRATE + FITTED, "write 2", FITTED[6:], marks=LONG),
        (
            "compensation=linear",
            CALIBRATE + FITTED,
            "compare",
            FITTED[12:],
        ),  # what fits report is there
        pytest.param(
            "metric=OBS compensation=linear", CLOSED_FORM, "score 2", CLOSED_FORM[2:], marks=LONG
        ),
        ("metric=OBS compensation=linear", CLOSED_FORM, "write 1", CLOSED_FORM[7:]),
        pytest.param(
            "method=wanda_sp compensation=linear",
            IN_SEQUENCE_FITTED,
            "write 2",
            IN_SEQUENCE_FITTED[6:],
            marks=LONG,
        ),
    ],
)
def test_a_killed_run_goes_on(
    choice: str,
    whole: list[str],
    killed_at: str,
    left: list[str],
    arguments: list[str],
    undisturbed,
    tmp_path: Path,
) -> None:
    steps, expected = undisturbed(choice)
    assert steps == whole
    done = whole[: whole.index(killed_at) + 1]
    assert start(tmp_path, [*arguments, *choice.split()], killed_at) == (-signal.SIGKILL, done)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert start(tmp_path, [*arguments, *choice.split()]) == (0, left)
    assert written(tmp_path) == expected
    remains = {
        path.name
        for folder in (tmp_path / "run", tmp_path / "cache" / "streams")
        for path in folder.iterdir()
    }
    remains = {name for name in remains if not name.endswith(".lock")}
    assert remains == {
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
    """Damaged in a way that its reader does not see: one digit, or one bit of a number, is another one."""
    at = max(text.rfind(digit) for digit in (b"1", b"2", b"3"))
    return text[:at] + b"4" + text[at + 1 :]


@pytest.mark.parametrize("damage", [emptied, flipped])
@pytest.mark.parametrize(
    ("choice", "killed_at", "note", "left"),
    [
        ("method=flap", "calibrate 2", "statistics-0", WHOLE),
        ("method=wanda_sp", "write 2", "decided-1", IN_SEQUENCE),
        ("compensation=linear", "compare", "fits-3", FITTED),
        pytest.param(
            "metric=OBS compensation=linear", "score 2", "scores-1", CLOSED_FORM, marks=LONG
        ),
    ],
)
def test_a_damaged_note_of_a_killed_run_is_made_again(
    choice: str,
    killed_at: str,
    note: str,
    left: list[str],
    damage: Callable[[bytes], bytes],
    arguments: list[str],
    undisturbed,
    tmp_path: Path,
) -> None:
    _, expected = undisturbed(choice)
    assert start(tmp_path, [*arguments, *choice.split()], killed_at)[0] == -signal.SIGKILL
    [file] = (tmp_path / "cache" / "streams").rglob(note)
    file.write_bytes(damage(file.read_bytes()))
    assert start(tmp_path, [*arguments, *choice.split()]) == (0, left)
    assert written(tmp_path) == expected


def test_a_killed_mixture(
    arguments: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Also with the output biases of its experts, which the model did not have."""
    model = tmp_path / "mixtral"
    tiny_model("mixtral").save_pretrained(model)
    tokenizer.save_pretrained(model)
    fits = ["metric=OBS", "compensation=linear", "calibration.num_samples=20"]
    arguments = [*arguments, f"model.path={model}", *fits]
    assert start(tmp_path / "whole", arguments)[0] == 0
    assert start(tmp_path / "killed", arguments, "write 1")[0] == -signal.SIGKILL
    code, steps = start(tmp_path / "killed", arguments)
    assert code == 0 and "write 0" not in steps
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_a_killed_run_leaves_nothing_to_another_one(
    arguments: list[str], undisturbed, tmp_path: Path
) -> None:
    """Neither to a run at another ratio, nor to one that is to begin anew."""
    start(tmp_path, [*arguments, "method=wanda_sp"], "write 2")
    assert start(tmp_path, [*arguments, "method=wanda_sp", "ratio=0.3"])[1] == IN_SEQUENCE
    assert start(tmp_path, [*arguments, "method=wanda_sp", "resume=false"]) == (0, IN_SEQUENCE)
    _, expected = undisturbed("method=wanda_sp")
    assert {name: text for name, text in written(tmp_path).items() if name != "flap.json"} == {
        name: text for name, text in expected.items() if name != "flap.json"
    }
