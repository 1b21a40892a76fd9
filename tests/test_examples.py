"""The scripts of examples/, each on a tiny model: they are short, they run, and what they leave can be used."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

import flap
from tests.cases import tiny_model
from tests.helpers.runs import tiny

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def started(name: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def printed(name: str, *arguments: object) -> str:
    with started(name, *arguments) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, text_file: Path) -> Path:
    """What examples/prune.py leaves."""
    folder = tmp_path_factory.mktemp("pruned") / "checkpoint"
    assert "removed 20.0% of" in printed("prune", model_dir, text_file, folder)
    return folder


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_a_script_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 30


def test_prune(checkpoint: Path) -> None:
    dense, pruned = tiny_model("llama-gqa"), flap.load(checkpoint)
    assert pruned.num_parameters() < dense.num_parameters()


def test_own_metric(model_dir: Path, text_file: Path) -> None:
    lines = printed("own_metric", model_dir, text_file).splitlines()
    assert [line.split()[0] for line in lines if "perplexity@128" in line] == ["WIFV", "Range"]


def test_study(tmp_path: Path, model_dir: Path, text_file: Path) -> None:
    output = printed("study", tmp_path, *tiny(model_dir, text_file))
    assert "index.html" in output.splitlines()[-1]
    assert {"0.2", "0.5"} <= {line.split()[0] for line in output.splitlines() if line}


def test_serve(checkpoint: Path) -> None:
    with started("serve", checkpoint, 0) as process:
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if line.startswith("http://"))
        with urlopen(address, data=b"the old tree", timeout=60) as answer:
            assert answer.read().decode().startswith("the old tree ")
        process.terminate()


def test_train(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    lines = printed("train", checkpoint, text_file, tmp_path).splitlines()
    losses = [float(line.split()[2]) for line in lines if line.startswith("step ")]
    assert len(losses) >= 2 and losses[-1] < losses[0]
    assert flap.load(tmp_path).num_parameters() == flap.load(checkpoint).num_parameters()
