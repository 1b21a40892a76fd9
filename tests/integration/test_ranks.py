"""A run in several processes: the result of one, whatever is chosen; and how all end where one of them fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import flap.calibration.recorder
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.ranks import command_line_in_ranks, in_ranks
from tests.helpers.runs import composed, tiny

OBS, SEARCH = "metric=OBS compensation=linear", "method=flap_plus"
# architecture (dense, mixture, hybrid) and what is chosen; 19 windows do not divide by 2 or 3, nor do 3 held-out ones
# The first QUICK are run with two processes by `make test`, all of them with two and three by `make checks`.
CASES = [
    ("llama-gqa", f"model.placement=stream {SEARCH}"),
    ("qwen3_moe", f"model.placement=device {OBS}"),
    ("qwen3_next", "model.placement=stream"),
    ("llama-gqa", f"model.placement=device {SEARCH} calibration.seq_len=[16,24]"),
    ("llama-gqa", f"model.placement=stream method=wanda_sp {OBS} calibration.num_samples=3"),
    ("llama-gqa", f"model.placement=device {OBS} calibration.dataset=self calibration.num_samples=40"),
    ("llama-gqa", "model.placement=device"),
    ("qwen3_moe", f"model.placement=stream {SEARCH}"),
    ("qwen3_moe", "model.placement=stream structure.experts=true metric=MoNE"),
    ("qwen3_next", f"model.placement=device {SEARCH}"),
    ("gemma4", f"model.placement=stream {OBS}"),
]
QUICK = 3
Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Models:
    folders = {name: tmp_path_factory.mktemp("ranks") / name for name, _ in CASES}
    for name, folder in folders.items():
        tiny_model(name).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def selected(request: pytest.FixtureRequest) -> set[int]:
    """The cases that this session tests."""
    specs = [item.callspec.params for item in request.session.items if getattr(item, "callspec", None)]
    return {params["case"] for params in specs if "of_several" in params}


def runs_of(
    folder: Path, models: Models, text_file: Path, cases: Iterable[int] = range(len(CASES))
) -> list[tuple[Path, list[str]]]:
    """The folder and the arguments of each case's run."""
    options = ["calibration.num_samples=19", "eval=[perplexity,divergence]", "ratio=0.4", f"cache_dir={folder}/cache"]
    on_text = [f"eval.{one}={value}" for one, value in (
        ("divergence.datasets", f"[{text_file}]"), ("divergence.seq_len", 16), ("divergence.max_tokens", 320),
        ("perplexity.max_tokens", 200),
    )]  # fmt: skip
    return [
        (folder / str(k), [*tiny(models[name], text_file), *options, *on_text, *choices.split()])
        for k, (name, choices) in enumerate(CASES)
        if k in cases
    ]


def run_all(runs: list[tuple[Path, list[str]]]) -> None:
    for folder, arguments in runs:
        run(composed(*arguments), folder)


@pytest.fixture(scope="module")
def of_one(request: Any, tmp_path_factory: pytest.TempPathFactory, models: Models, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert in_ranks(1, run_all, runs_of(folder, models, text_file, selected(request))) == [0]
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def of_several(request: Any, tmp_path_factory: pytest.TempPathFactory, models: Models, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("several")
    runs = runs_of(folder, models, text_file, selected(request))
    assert in_ranks(request.param, run_all, runs) == [0] * request.param
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two CUDA devices: nccl refuses two processes on one")
def test_all_gpus_give_the_result_of_one(models: Models, text_file: Path, tmp_path: Path) -> None:
    folders = []
    for size in (1, torch.cuda.device_count()):
        some = runs_of(tmp_path / str(size), models, text_file)
        # a fast type of products would differ; and each process needs a window
        on_gpu = [
            "model.device=cuda",
            "model.dtype=float32",
            f"calibration.num_samples={19 + torch.cuda.device_count()}",
        ]
        runs = [(folder, [*arguments, *on_gpu]) for folder, arguments in some]
        assert in_ranks(size, run_all, runs) == [0] * size
        folders.append([folder for folder, _ in runs])
    for one, several in zip(*folders, strict=True):
        plans = [json.loads((folder / "plan.json").read_text())["layers"] for folder in (one, several)]
        assert plans[0] == plans[1]
        for name, tensor in tensors_of(one).items():
            torch.testing.assert_close(tensors_of(several)[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(k, marks=[pytest.mark.long] if k >= QUICK else [], id=" ".join(case))
        for k, case in enumerate(CASES)
    ],
)
def test_several_processes_give_the_result_of_one(case: int, of_one: Path, of_several: Path) -> None:
    one, several = (folder / str(case) for folder in (of_one, of_several))
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (one, several)]
    assert plans[0]["layers"] == plans[1]["layers"]
    expected, found = map(tensors_of, (one, several))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    of, reports = "evaluation", [json.loads((folder / "report.json").read_text()) for folder in (one, several)]
    for which in ("dense", "pruned"):
        assert reports[1][of][which] == pytest.approx(reports[0][of][which], rel=1e-4, abs=1e-6)
    assert not reports[0]["processes"] and len(reports[1]["processes"]) in (2, 3)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = (folder / "checkpoint").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def out_of_memory() -> None:
    """The second process has no memory for its statistics, while the first goes on."""

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    if os.environ["RANK"] == "1":
        flap.calibration.recorder.batch_statistics = fail


@pytest.mark.parametrize(
    ("override", "before", "line"),
    [
        ("ratio=2", None, "ratio=2.0: expected a number with 0 <= ratio < 1"),
        ("calibration.num_samples=1", None, "calibration.num_samples=1: expected 2 windows or more"),
        ("model.placement=auto", None, "model.placement=auto: expected device or stream with several processes"),
        ("calibration.dataset=words.txt", None, "rank 1 on .*: the content of calibration is not as on rank 0"),
        (
            "use_cache=false",
            out_of_memory,
            "rank 1 on .*: OutOfMemoryError: out of memory; less is taken by model.placement",
        ),
    ],
)
def test_what_one_process_cannot_do_ends_all_with_one_line(
    override: str,
    before: Callable[[], None] | None,
    line: str,
    model_dir: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, animal in zip(folders, ("cat", "dog"), strict=True):
        folder.mkdir()
        (folder / "words.txt").write_text(f"the {animal} sat on a mat " * 500)
    options = ["hydra.run.dir=../run", f"cache_dir={tmp_path / 'cache'}", "eval=[none]"]
    done = command_line_in_ranks(folders, *tiny(model_dir, text_file)[:-2], *options, override, before=before)
    assert [one.returncode for one in done] == [1, 1]
    said = [text for one in done for text in (one.stdout + one.stderr).splitlines() if "error:" in text]
    assert re.search(line, said[-1]) and len(said) == 1, said


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flap"]


def environment_with(temporary: Path) -> dict[str, str]:
    temporary.mkdir()
    return os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


@pytest.mark.long
def test_torchrun_goes_through_the_cells_of_a_sweep(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = [*tiny(model_dir, text_file), "checkpoint.save=false", "hydra.sweep.dir=sweep", "ratio=0.2,1.5,0.4"]
    environment = environment_with(tmp_path / "temporary")
    done = subprocess.run([*TORCHRUN, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "failed:"))]
    assert done.returncode == 1 and len(said) == 2 and all("ratio=1.5" in line for line in said)
    reports = sorted(tmp_path.glob("sweep/*/report.json"))
    assert [json.loads(path.read_text())["config"]["ratio"] for path in reports] == [0.2, 0.4]
    assert (tmp_path / "sweep" / "index.html").is_file()
    assert not list((tmp_path / "temporary").glob("flap-*"))


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_same_command_goes_on(
    model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    options = ["ratio=0.4", "calibration.num_samples=64", "eval=[none]", "checkpoint.save=false", *SEARCH.split()]
    own = ["hydra.run.dir=run", "cache_dir=cache", "structure.tokens=1024", "run_name=test"]
    arguments = [*tiny(model_dir, text_file)[:-2], *options]
    command, environment = [*TORCHRUN, *arguments, *own], environment_with(tmp_path / "temporary")
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as started:
        while not list((tmp_path / "cache" / "streams").glob("*/score/scores-1")):
            assert started.poll() is None, started.stderr and started.stderr.read()
            time.sleep(0.002)
        children = psutil.Process(started.pid).children(recursive=True)
        [one] = [one for one in children if one.environ().get("RANK") == "1"]
        one.send_signal(signal.SIGKILL)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 1 and len(re.findall("^error: ", said, re.MULTILINE)) <= 1, said
    assert not psutil.wait_procs(children, timeout=5)[1]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    run(composed(*arguments, f"cache_dir={tmp_path / 'other'}", "structure.tokens=1024"), tmp_path / "one")
    plans = [json.loads((tmp_path / folder / "plan.json").read_text()) for folder in ("run", "one")]
    assert plans[0]["layers"] == plans[1]["layers"]
