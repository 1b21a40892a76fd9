"""The scripts of examples/ run on a tiny model, and write valid checkpoints and study pages."""

import json
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
from omegaconf import OmegaConf

import flap
from flap.results.study_files import read_study
from flap.storage import digest, read_json
from tests.cases import tiny_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> dict[str, Any]:
    """Run a script of examples/ without calling its `main`, and return its global variables."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Return a function that runs a script's `main` in an empty folder.

    The function returns the lines that the script has printed.
    """
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> list[str]:
        example(name)["main"](*map(str, arguments))
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, text_file: Path) -> Path:
    """Return the checkpoint that examples/prune.py saves."""
    folder = tmp_path_factory.mktemp("pruned") / "checkpoint"
    example("prune")["main"](str(model_dir), str(text_file), str(folder))
    return folder


def test_prune(checkpoint: Path) -> None:
    dense = tiny_model("llama-gqa")
    pruned = flap.load(checkpoint)
    assert pruned.num_parameters() < dense.num_parameters()


def test_function(printed: Callable[..., list[str]], model_dir: Path, tmp_path: Path) -> None:
    lines = printed("function", model_dir, tmp_path / "pruned")
    assert lines[0].endswith(".largest_output")
    assert "400 texts in memory (digest " in lines[1]
    assert (
        flap.load(tmp_path / "pruned").num_parameters() < tiny_model("llama-gqa").num_parameters()
    )


@pytest.mark.long
def test_own_parts_from_the_command_line(flap: Any, base: list[str], tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    own = [
        "metric=WIFV,Range",
        "structure=Neurons",
        "checkpoint.save=false",
        "eval=[Sentence]",
        "hydra.sweep.dir=sweep",
    ]
    done = flap(
        "-m",
        "--config-dir=conf",
        *(one for one in base if not one.startswith(("eval.", "structure"))),
        *own,
    )
    assert done.returncode == 0, done.stderr
    for folder in tmp_path.glob("sweep/*_tiny_*"):
        assert set(read_json(folder / "report.json")["evaluation"]["pruned"]) == {"sentence/loss"}
        assert all(
            layer["kv_heads"] == [0, 1, 2, 3] for layer in read_json(folder / "plan.json")["layers"]
        )
    [command] = read_study(tmp_path / "sweep").commands
    folder, *overrides = shlex.split(command)[4:]  # the page of the study shows this command
    assert folder == f"--config-dir={tmp_path / 'conf'}" and "metric=WIFV,Range" in overrides
    source = digest([(EXAMPLES / "own.py").read_text()])
    assert f"own code: {source[:12]}" in (tmp_path / "sweep" / "index.html").read_text()


@pytest.mark.long
def test_study(printed: Callable[..., list[str]], tmp_path: Path, base: list[str]) -> None:
    lines = printed("study", tmp_path, *base)
    assert lines[-1] == (tmp_path / "index.html").as_uri()
    assert {"0.2", "0.5"} <= {line.split()[0] for line in lines if line}


@pytest.mark.long
def test_answers(printed: Callable[..., list[str]], tmp_path: Path, base: list[str]) -> None:
    rows = [{"prompt": f"the w{i} was the", "answer": "old tree"} for i in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        one for one in base[:5] if not one.startswith("calibration.dataset=")
    ]  # base[5:] sets options of perplexity, which the example does not measure
    lines = printed(
        "answers", tmp_path / "mine.jsonl", tmp_path / "sweep", *own, "calibration.max_new_tokens=8"
    )
    assert [line.split()[0] for line in lines[-6:-1]] == ["ratio", "0.05", "0.10", "0.15", "0.20"]
    assert "generation.svg" in {path.name for path in (tmp_path / "sweep" / "plots").iterdir()}
    assert "asked.jsonl/f1" in (tmp_path / "sweep" / "index.html").read_text()


def test_serve(checkpoint: Path) -> None:
    with example("serve")["served"](str(checkpoint), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with urlopen(
            f"http://127.0.0.1:{server.server_port}", data=b"the old tree", timeout=60
        ) as answer:
            text = answer.read().decode()
        server.shutdown()
    assert text.startswith("the old tree") and len(text.split()) > 3


def test_train(
    printed: Callable[..., list[str]], checkpoint: Path, text_file: Path, tmp_path: Path
) -> None:
    lines = printed("train", checkpoint, text_file, tmp_path)
    losses = [float(line.split()[2]) for line in lines if line.startswith("step ")]
    assert len(losses) >= 2 and losses[-1] < losses[0]
    assert flap.load(tmp_path).num_parameters() == flap.load(checkpoint).num_parameters()


@pytest.mark.long
def test_optuna_optimises_what_runs_return(
    quick_flap: Callable[..., "CompletedProcess[str]"], base: list[str], tmp_path: Path
) -> None:
    number = "pruned/words.txt/perplexity@16"
    done = quick_flap(
        f"--config-dir={EXAMPLES / 'conf'}", "+experiment=optimise", "hydra/sweeper=optuna", *base,
        "eval=[perplexity]", "~eval.generation", "hydra.sweep.dir=mine", f"objective={number}",
        "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.params={ratio:'interval(0.1,0.4)',structure.min_heads:'choice(1,2)'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = OmegaConf.load(tmp_path / "mine" / "optimization_results.yaml")
    found = []
    for file in tmp_path.glob("mine/*/report.json"):
        found.append(
            json.loads(file.read_text())["evaluation"]["pruned"]["words.txt/perplexity@16"]
        )
    assert len(found) == 2 and best.best_value == min(found)
