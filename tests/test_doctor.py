"""What the doctor says of a machine, one line each."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.requirements import Requirement

from flap.doctor import bfloat16, main, unmet
from tests.helpers.forked import command_line

CHECKS = [
    "versions",
    "devices",
    "bfloat16",
    "launchers",
    "cache",
    "disk",
    "packaged model",
    "packaged texts",
    "hub",
    "W&B",
]
Flap = Callable[..., subprocess.CompletedProcess[str]]


def findings(lines: list[str]) -> dict[str, tuple[str, str]]:
    """The state and the text of each check, by its name."""
    return {line[9:25].strip(): (line[:9].strip(), line[25:]) for line in lines}


def offline() -> None:
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # which is read where it is imported


def test_one_line_for_each_check(tmp_path: Path) -> None:
    environment = {"FLAP_CACHE_DIR": str(tmp_path / "cache"), "WANDB_API_KEY": ""}
    done = command_line(tmp_path, "doctor", before=offline, **environment)
    found = findings(done.stdout.splitlines())
    assert (done.returncode, done.stderr, list(found)) == (0, "", CHECKS)
    assert {state for state, _ in found.values()} <= {"ok", "note"}
    assert found["versions"][0] == "ok" and "torch " in found["versions"][1]
    assert found["cache"] == ("ok", f"{tmp_path / 'cache'}, 0 bytes")
    assert found["hub"] == ("note", "HF_HUB_OFFLINE is set: only packaged, cached and local models and texts")
    assert found["W&B"][0] == "note" and "wandb login" in found["W&B"][1]
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["--cache-dir", str(tmp_path / "file" / "cache")])
    state, text = findings(capsys.readouterr().out.splitlines())["cache"]
    assert (stopped.value.code, state) == (1, "problem")
    assert text.startswith(f"{tmp_path / 'file' / 'cache'} cannot be written") and "FLAP_CACHE_DIR" in text


@pytest.mark.parametrize(
    ("processor", "told"), [({"avx512_f": True}, True), ({"avx512_f": True, "amx_bf16": True}, False)]
)
def test_the_doctor_says_where_bfloat16_is_computed_in_float32(
    processor: dict[str, bool], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    state, text = bfloat16()
    assert re.match(r"cpu: \d+ gigaFLOP/s in bfloat16, \d+ in float32", text)
    assert ("are computed in float32 with model.dtype=auto" in text) == told
    assert state == "note" or not told


def test_what_is_missing_or_too_old_is_named() -> None:
    asked = [Requirement(line) for line in ("torch<1", "torch>=2", "no-such-package")]
    assert [(one.name, installed[:1]) for one, installed in unmet(asked)] == [("torch", "2"), ("no-such-package", "i")]


@pytest.mark.long
def test_a_package_that_cannot_be_imported_is_a_problem(flap: Flap, tmp_path: Path) -> None:
    (tmp_path / "gguf.py").write_text("")  # comes before the package, whose metadata are as they should be
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = flap("doctor", HF_HUB_OFFLINE="1", PYTHONPATH=path)
    state, text = findings(done.stdout.splitlines())["versions"]
    assert (done.returncode, state) == (1, "problem") and "ImportError" in text and "gguf" in text
