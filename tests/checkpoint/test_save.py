"""Saving verifies the new checkpoint. If saving fails, the target folder is as it was before."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from flap.checkpoint.card import CARD, MARK, write_card
from flap.checkpoint.save import DifferentError, check_target, verify
from flap.models import PlacedModel
from flap.storage.atomic_files import atomic_directory, remove_leftovers

Save = Callable[..., PlacedModel]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = contents(folder)
    yield
    assert contents(folder) == before
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]


def test_what_is_there_stays_unless_overwrite_is_asked_for(save_over: Save, old: Path) -> None:
    with (
        nothing_changes(old.parent),
        pytest.raises(ValueError, match=r"checkpoint\.dir=.*not empty.*overwrite=true"),
    ):
        save_over(overwrite=False)


def test_overwrite_replaces_the_whole_folder(
    save_over: Save, old: Path, model: PreTrainedModel
) -> None:
    """Saving over a checkpoint removes old weight files that the new checkpoint does not have.

    Saving also removes temporary files that a killed process has left next to the checkpoint.
    """
    stale = "model-00002-of-00002.safetensors"
    left_behind(old)
    (old / stale).write_text("of another model")
    (old / "adapter_model.safetensors").write_text("mine")
    names = contents(old).keys()
    save_over()
    assert contents(old).keys() == names - {stale}
    norm = load_file(old / "model.safetensors")["model.norm.weight"]
    assert torch.equal(norm, model.model.norm.weight)
    assert [path.name for path in old.parent.iterdir()] == ["checkpoint"]


def test_what_is_the_users_own_is_carried_over(save_over: Save, old: Path) -> None:
    (old / "figures").mkdir()
    mine = ("tokenizer_notes.txt", "vocab.md", "figures/loss.svg")
    for name in mine:
        (old / name).write_text("mine")
    (old / "notes").symlink_to("/absent/on an unmounted disk")
    (old / ".mlx.0123abcd.new").mkdir()  # the temporary folder of an export that was killed
    (old / ".mlx.0123abcd.lock").write_text("")
    save_over()
    assert {(old / name).read_text() for name in mine} == {"mine"}
    assert (old / "notes").readlink() == Path("/absent/on an unmounted disk")
    assert not list(old.glob(".mlx*"))


@pytest.mark.parametrize("name", [".", "..", "new/.."])
def test_a_folder_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^checkpoint\.dir={name}: expected the name of a folder"
    ):
        check_target(Path(name), overwrite=True)


def tamper(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.01
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_difference_is_noticed_and_both_sides_are_named(
    model: PreTrainedModel, save_over: Save, old: Path
) -> None:
    placed = save_over()
    # Saving leaves the model in memory as it is, because the run measures this model afterwards.
    assert placed.model is model
    verify(placed, old)
    tamper(old)
    with pytest.raises(
        DifferentError, match=r"reloaded from \S+checkpoint differ from .*memory by \d"
    ) as caught:
        verify(placed, old)
    assert "\n" not in str(caught.value)


def test_a_wrong_copy_is_not_kept(
    model: PreTrainedModel, save_over: Save, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = type(model).save_pretrained

    def write_badly(self: PreTrainedModel, directory: Path, **options: object) -> None:
        write(self, directory, **options)
        tamper(directory)

    monkeypatch.setattr(type(model), "save_pretrained", write_badly)
    with nothing_changes(old.parent), pytest.raises(DifferentError, match="differ from"):
        save_over()


def left_behind(folder: Path, moved: Path | None = None) -> None:
    """Create the temporary files of a process that was killed while it wrote a folder.

    moved: the old version of the folder, which gets a temporary name, as if the process had already
        renamed it. If None, no folder is renamed.
    """
    (folder.parent / f".{folder.name}.1234abcd.lock").write_text("")
    (folder.parent / f".{folder.name}.1234abcd.new").mkdir()
    (folder.parent / f".{folder.name}.1234abcd.new" / "half").write_text("half")
    if moved is not None:
        moved.rename(folder.parent / f".{folder.name}.1234abcd.old")


def test_an_old_folder_that_a_dead_process_had_moved_comes_back(old: Path) -> None:
    before = contents(old)
    left_behind(old, moved=old)
    remove_leftovers(old)
    after = {f"checkpoint/{name}": content for name, content in before.items()}
    assert contents(old.parent) == after


def test_what_a_live_process_writes_stays(old: Path) -> None:
    with atomic_directory(old, "checkpoint.dir") as scratch:
        (scratch / "file").write_text("all")
        code = (
            "from pathlib import Path; from flap.storage.atomic_files import remove_leftovers; "
            f"remove_leftovers(Path({str(old)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == 0 and (scratch / "file").read_text() == "all"


def test_a_card_goes_with_its_checkpoint_unless_it_is_somebodys_own(
    save_over: Save, old: Path
) -> None:
    card = old / CARD
    write_card(old, f"{MARK}\nof the old one\n")
    save_over()
    assert not card.exists()
    write_card(old, f"{MARK}\nof the new one\n")
    write_card(old, f"{MARK}\nwith its numbers\n")
    assert "with its numbers" in card.read_text()
    card.write_text("mine")
    save_over()
    write_card(old, f"{MARK}\nof the next one\n")
    assert card.read_text() == "mine"


@pytest.mark.parametrize("place", ["", "inside", ".."])
def test_the_dense_model_is_never_replaced(place: str, old: Path) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint\.dir=.*a directory that is not the model"):
        check_target(old / place, overwrite=True, model=old)


def test_a_folder_that_is_no_checkpoint_of_flap_is_not_replaced(old: Path) -> None:
    (old / "flap.json").unlink()
    with (
        nothing_changes(old.parent),
        pytest.raises(ValueError, match=r"contains no checkpoint of flap \(flap\.json\)"),
    ):
        check_target(old, overwrite=True)
