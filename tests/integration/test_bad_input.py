"""The pipeline refuses wrong options with a message of one line.

The message names the field, its value and the allowed values. The run leaves no files, except the
dense model's measured results if the error comes after the measurement. The tests here run the
pipeline in the process of pytest; test_bad_command_line.py starts separate processes.
"""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from flap.models import OnDisk
from flap.models.placement.layer_files import LayerFiles
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.damaged import damage
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB, smollm
from tests.refusals import AT_THE_WEIGHTS, TABLES, TEXTS, WITH_PROMPTS, rows


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """Create a folder of damaged input files. In tests/refusals.py, {bad} stands for its path."""
    return damage(tmp_path_factory.mktemp("bad"), model_dir)


ROWS = [(model, *row) for model, table in TABLES.items() for row in rows(table)]
if not torch.cuda.is_available():
    ROWS.append(
        ("llama", "model.device=cuda", "model.device=cuda: not on this machine, which has …cpu")
    )


def refused(arguments: str, message: str, base: list[str], bad: Path, run_dir: Path) -> None:
    """Check that a run with these arguments fails, and leaves no files but measured results.

    message: the beginning of the expected error message. An ellipsis (…) stands for any text.
    """
    arguments = arguments.replace("{bad}", str(bad))
    arguments = arguments.replace("{long}", "x" * 241).replace("{huge}", "y" * 5000)
    with pytest.raises(ValueError) as caught:
        run(composed(*base, *arguments.split()), run_dir, overrides=arguments.split())
    expected = (
        message.replace("{bad}", str(bad))
        .replace("{texts}", TEXTS)
        .replace("{prompts}", WITH_PROMPTS)
    )
    said = str(caught.value)
    assert re.fullmatch(".*".join(map(re.escape, f"{expected}…".split("…"))), said), said
    assert "y" * 200 not in said
    # The run may leave the files with the dense model's measured results, because some errors occur
    # only after the dense model was measured.
    assert {path.name for path in run_dir.rglob("*")} <= {"evaluation.json", "documents.json.gz"}
    assert [path.name for path in bad.glob("occupied/*")] == ["precious"] and not list(
        bad.glob(".*")
    )


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    model_dir: Path,
    text_file: Path,
) -> dict[str, list[str]]:
    """Return a dict from the name of each table in TABLES to the arguments of all its runs."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model("mixtral").save_pretrained(folder / "mixtral")
    tokenizer.save_pretrained(folder / "mixtral")
    tiny_model("llama-gqa", vocab_size=VOCAB).save_pretrained(folder / "words")
    smollm().save_pretrained(folder / "words")
    (folder / "fox.txt").write_text((TEXT[0] + " ") * 160)
    return {
        "llama": tiny(model_dir, text_file),
        "trained": [
            *tiny(model_dir, text_file),
            "recover=full",
            "recover.tokens=2432",
            "recover.seq_len=16",
        ],
        "mixtral": [*tiny(folder / "mixtral", text_file), "structure.experts=true"],
        "words": [
            *tiny(folder / "words", folder / "fox.txt"),
            "vocabulary=trim",
            "vocabulary.size=320",
        ],
    }


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("model", "arguments", "message"), ROWS, ids=[" ".join(row[:2]) for row in ROWS]
)
def test_refused_before_any_weight_is_loaded(
    model: str,
    arguments: str,
    message: str,
    bases: dict[str, list[str]],
    bad: Path,
    tmp_path: Path,
) -> None:
    base = bases[model]
    if arguments.startswith("eval="):
        base = [option for option in base if not option.startswith("eval.")]
    refused(arguments, message, base, bad, tmp_path / "run")


@pytest.mark.parametrize(("arguments", "message"), rows(AT_THE_WEIGHTS))
def test_bad_weights(
    arguments: str, message: str, bases: dict[str, list[str]], bad: Path, tmp_path: Path
) -> None:
    refused(
        arguments,
        message,
        [*bases["llama"], f"cache_dir={tmp_path / 'cache'}"],
        bad,
        tmp_path / "run",
    )


def test_a_disk_that_is_too_small_is_refused_before_any_layer_is_read(
    base: list[str], bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "checkpoint.dir=…: the pruned model takes 0.000161 GB, and 1e-06 GB are free there; "
        "name a place on"
    )
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda path: SimpleNamespace(free=10**9 if "cache" in str(path) else 1000, total=10**12),
    )
    monkeypatch.setattr(OnDisk, "layer", lambda *_: pytest.fail("a layer was read"))
    base = [*base, "eval=[none]", "model.placement=stream", f"cache_dir={tmp_path / 'cache'}"]
    refused("", line, [one for one in base if not one.startswith("eval.")], bad, tmp_path / "run")


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, FULL), SafetensorError(f"I/O error: {FULL}")], ids=type
)
def test_a_disk_that_fills_up_leaves_nothing_and_costs_no_work(
    error: Exception, base: list[str], bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, **rest: object) -> None:
        if "00004" in path.name:
            raise error
        save_file(tensors, path, **rest)

    line = "checkpoint.dir=…: cannot be written, and is unchanged (…No space left on device"
    base = [*base, "model.placement=stream", f"cache_dir={tmp_path / 'cache'}"]
    with monkeypatch.context() as patch:
        patch.setattr("flap.models.placement.on_disk.save_file", full)
        patch.setattr(LayerFiles, "link", lambda *_: False)  # as if the disk had no hard links
        refused("", line, base, bad, tmp_path / "run")
    monkeypatch.setattr(LayerFiles, "write", lambda *_: pytest.fail("a layer was pruned again"))
    run(composed(*base), tmp_path / "run")
