"""Notes on the steps of long work: a later run reads those that are whole."""

from pathlib import Path

import pytest

from flap.storage import Notes, WorkFolder, as_json
from flap.storage.work_folder import notes_are_whole

NUMBERS = as_json("numbers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with notes on three steps."""
    notes = Notes(NUMBERS, WorkFolder(tmp_path / "work"))
    for step in range(3):
        notes.write(step, [step, 10 * step])
    return tmp_path / "work"


def later(folder: Path) -> Notes[list[int]]:
    return Notes(NUMBERS, WorkFolder(folder))


def test_a_later_run_reads_what_was_noted(folder: Path) -> None:
    notes = later(folder)
    assert [step in notes for step in range(4)] == [True, True, True, False]
    assert notes.read(2) == [2, 20]
    assert notes_are_whole(folder, steps=3)


@pytest.mark.parametrize("damaged", ["numbers-1", "numbers-1.sha256"])
@pytest.mark.parametrize("content", [b"", b"[1, 11]", b"\xff"], ids=["empty", "other", "no text"])
def test_a_damaged_note_counts_as_missing(
    damaged: str, content: bytes, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / damaged).write_bytes(content)
    notes = later(folder)
    assert [step in notes for step in range(3)] == [True, False, True]
    assert f"{folder / 'numbers-1'}: is damaged" in caplog.text
    assert not notes_are_whole(folder, steps=2)
    assert notes_are_whole(folder, steps=1)  # later steps are done again anyway

    notes.write(1, [1, 12])
    assert 1 in later(folder) and later(folder).read(1) == [1, 12]
    assert notes_are_whole(folder, steps=3)


def test_notes_without_a_folder_are_kept_in_memory() -> None:
    notes = Notes[int](NUMBERS)
    notes.write(0, 7)
    assert 0 in notes and 1 not in notes and notes.read(0) == 7
