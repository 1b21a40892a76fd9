"""A checkpoint never replaces a folder from which its run reads a model, a plan or a text."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flap.checkpoint.export.gguf.export import export_gguf
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.marks import quick
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB, smollm

PRUNED = ("structure=UL-UM", "round_to=32", "ratio=0.2")
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a tiny model, a text and a checkpoint.

    The folder of the checkpoint also contains a GGUF file, a plan and texts.
    """
    folder = tmp_path_factory.mktemp("made")
    tiny_model("llama-gqa", vocab_size=VOCAB).save_pretrained(folder / "model")
    smollm().save_pretrained(folder / "model")
    (folder / "fox.txt").write_text((TEXT[0] + " ") * 160)

    arguments = [*inputs(folder), *PRUNED, "eval=[none]", f"checkpoint.dir={folder / 'ck'}"]
    run(composed(*arguments), folder / "run")
    export_gguf(folder / "ck", "f16")

    (folder / "ck" / "mlx").mkdir()
    shutil.copy(folder / "fox.txt", folder / "ck" / "mlx" / "mine.txt")
    shutil.copy(folder / "fox.txt", folder / "ck" / "vocab.txt")
    shutil.copy(folder / "run" / "plan.json", folder / "ck")
    return folder


def inputs(folder: Path) -> list[str]:
    """Return the arguments of a run with the tiny model and the text, without an evaluation."""
    arguments = tiny(folder / "model", folder / "fox.txt")
    return [one for one in arguments if not one.startswith("eval.")]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Copy the folder that `made` creates, and add links to and from the copied checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "linked").symlink_to(copy / "ck")
    (copy / "link.gguf").symlink_to(copy / "ck" / "model-f16.gguf")
    (copy / "link.txt").symlink_to(copy / "ck" / "vocab.txt")
    (copy / "ck" / "merges.txt").symlink_to(copy / "fox.txt")
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("arguments", "target"),
    quick(
        4,
        [
            ("{pruned} model.path={folder}/ck/model-f16.gguf", "ck"),
            ("{pruned} model.path={folder}/link.gguf", "linked"),
            ("{pruned} calibration.dataset={folder}/ck/vocab.txt", "ck"),
            ("{pruned} calibration.dataset={folder}/linked/vocab.txt", "ck"),
            ("{pruned} calibration.dataset={folder}/link.txt", "linked"),
            ("{pruned} calibration.dataset={folder}/ck/merges.txt", "ck"),
            ("{pruned} calibration.dataset={folder}/ck/mlx/mine.txt", "ck"),
            ("{pruned} calibration.dataset=[{folder}/fox.txt,{folder}/ck/vocab.txt]", "ck"),
            ("{pruned} calibration.dataset={{{folder}/ck/vocab.txt:1}}", "ck"),
            (
                "{pruned} eval=[perplexity] eval.perplexity.seq_len=16 "
                "eval.perplexity.datasets=[{folder}/ck/vocab.txt]",
                "ck",
            ),
            ("plan={folder}/ck/plan.json", "ck"),
        ],
    ),
)
def test_what_a_run_reads_is_not_replaced_by_its_checkpoint(
    arguments: str, target: str, quick_flap: Cli, folder: Path, tmp_path: Path
) -> None:
    given = arguments.format(folder=folder, pruned=" ".join(PRUNED)).split()
    before = contents(folder)
    done = overwrite(quick_flap, folder / target, *inputs(folder), "eval=[none]", *given)
    assert done.returncode == 1, done.stderr
    # If the model is a GGUF file, the lines before the error show the progress of dequantising.
    *_, line = done.stderr.strip().splitlines()
    field = given[-1].partition("=")[0]
    assert line.startswith(f"error: checkpoint.dir={folder / target}: saving replaces")
    assert f" {field}=" in line
    assert contents(folder) == before


def test_a_file_that_lies_elsewhere_is_read(quick_flap: Cli, folder: Path) -> None:
    done = overwrite(quick_flap, folder / "ck", *inputs(folder), *PRUNED, "eval=[none]")
    assert done.returncode == 0, done.stderr
    assert (folder / "fox.txt").is_file()


def overwrite(quick_flap: Cli, checkpoint: Path, *arguments: str) -> "CompletedProcess[str]":
    """Run flap with checkpoint.overwrite=true and a checkpoint.dir that contains a checkpoint."""
    places = (f"checkpoint.dir={checkpoint}", f"hydra.run.dir={checkpoint.parent / 'second'}")
    return quick_flap(*arguments, *places, "checkpoint.overwrite=true")
