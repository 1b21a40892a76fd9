"""Bad input that the pipeline refuses: one line that names the field, the value and what is allowed; nothing is left.

Run in this process, as the command line would; test_bad_command_line.py does some of it in real processes.
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from flap.models import CheckpointSource, OnDisk
from flap.models.placement.layer_files import LayerFiles
from flap.pipeline import run
from flap.runs.free_memory import FreeMemory
from tests.helpers.damaged import damage
from tests.helpers.runs import composed, tiny

PLENTY = 10**12  # bytes
NAMES = "boolq-passages, hellaswag-passages, sciq-passages, python-code, .*, ptb, or a .txt, .jsonl or .parquet file"


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """The folder that the tables below call {bad}."""
    return damage(tmp_path_factory.mktemp("bad"), model_dir)


BEFORE_WEIGHTS = [
    ("structure=AL-MM structure.remove_heads=-2", "structure.remove_heads=-2: .* 0 to 12"),
    ("structure=UL-MM structure.remove_heads=14", "structure.remove_heads=14: .* 0 to 12"),
    ("structure=AL-MM structure.remove_heads=3", "structure.remove_heads=3: .* in steps of 2"),
    ("structure=AL-MM structure.remove_heads=abc", "structure.remove_heads=abc: .*Integer"),
    ("ratio=0.99", "ratio=0.99: .* at most 0.858"),
    ("structure.min_heads=5", "structure.min_heads=5: expected 0 to 4, the KV heads of a layer"),
    ("structure.min_neurons=57", "structure.min_neurons=57: expected 0 to 56, the neurons of a layer"),
    ("structure.min_neurons=56 ratio=0.5", "ratio=0.5: 1 KV head and 56 neurons stay in every layer, .* at most 0.4"),
    ("round_to=7", "round_to=7: expected null, or one of 8, 32, 64, 128, 256"),
    ("round_to=64", "round_to=64: a layer has 56 neurons and keeps at least 1 .*; no multiple lies between"),
    ("calibration.propagate=pruned", "calibration.propagate=pruned: expected structure=UL-UM or UL-MM, because"),
    ("method=flap_plus calibration.propagate=pruned", "calibration.propagate=pruned: expected structure=UL-UM or UL"),
    ("metric.square_attention=abc", "metric.square_attention=abc: .*bool"),
    ("structure.scale=error", "metric.square_attention=true: .*; set metric.square_attention=false"),
    ("compensation=linear compensation.ridge=-1", "compensation.ridge=-1.0: expected a number >= 0, or null to choose"),
    ("metric=REAP", "structure.experts=False: expected true with a metric that scores the whole experts of a mixture"),
    ("metric=REAP structure.experts=true", "structure.experts=true: expected false for llama; or one of mixtral, "),
    ("metric=OBS metric.ridge=0", "metric.ridge=0.0: expected a number > 0"),
    ("structure=search structure.tokens=0", "structure.tokens=0: expected a whole number >= 1"),
    ("structure=search structure.levels=[]", "structure.levels=\\[\\]: expected shares of a block's units between 0"),
    ("structure=search structure.divergence=tv", "structure.divergence=tv: expected kl or acceptance"),
    ("eval.perplexity.seq_len=abc", "eval.perplexity.seq_len=abc: expected a whole number >= 2, or a list of such"),
    ("eval.perplexity.datasets=null", "eval.perplexity.datasets=None: .*not Optional"),
    ("eval.perplexity.datasets={bad}/short.txt", "eval.perplexity.datasets.*short.txt.*list"),
    ("model.placement=stream checkpoint.save=false", "checkpoint.save=False: expected true with model.placement=strea"),
    ("model.path={bad}/bloom", "model.path.*'bloom' is not supported; supported are .*llama, .*flap/modeling/families"),
    ("model.path={bad}/absent", "model.path={bad}/absent: no model in a local directory or on the hub"),
    ("model.path={bad}/no-weights", "model.path={bad}/no-weights: no .*safetensors"),
    ("model.path={bad}/pickled", "model.path={bad}/pickled: no .*safetensors .*pickled weights are not read"),
    ("model.path={bad}/truncated", "model.path={bad}/truncated: model.safetensors is damaged or truncated"),
    ("model.path={bad}/shard-missing", "model.path={bad}/shard-missing: .*json names model-00003.*, which is missing"),
    ("model.path={bad}/shard-truncated", "model.path={bad}/shard-truncated: model-00003.* is damaged or truncated"),
    ("model.path={bad}/index-lies", "model.path={bad}/index-lies: .*json names 1 tensors .*, as .*up_proj.*00001"),
    ("model.path={bad}/index-broken", "model.path={bad}/index-broken: .*json is no index of tensors"),
    ("model.path={bad}/absent model.placement=stream", "model.path={bad}/absent: no local directory, and cannot be"),
    ("calibration.dataset=wikitext3", f"calibration.dataset=wikitext3: unknown dataset; expected {NAMES}"),
    ("calibration.dataset={bad}/absent.txt", f"calibration.dataset={{bad}}/absent.txt: no such file; expected {NAMES}"),
    ("calibration.dataset={bad}/empty.txt", "calibration.dataset={bad}/empty.txt: the file holds no text"),
    ("calibration.dataset={bad}/blank.txt", "calibration.dataset={bad}/blank.txt: the file holds no text"),
    ("calibration.dataset={bad}/short.txt", "calibration.dataset=.*short.txt: 0 windows of 16 tokens are too few"),
    ("calibration.dataset={bad}/words.csv", f"calibration.dataset={{bad}}/words.csv: unknown dataset; .*{NAMES}"),
    ("calibration.dataset={bad}/latin1.txt", "calibration.dataset=.*latin1.txt: cannot be read; expected text in UTF"),
    ("calibration.dataset={bad}/other.jsonl", "calibration.dataset={bad}/other.jsonl: no column 'text', only body"),
    ("calibration.dataset={bad}/null.jsonl", "calibration.dataset={bad}/null.jsonl: "),
    ("calibration.dataset={bad}/number.jsonl", "calibration.dataset={bad}/number.jsonl: "),
    ("calibration.dataset={{self:-1}}", "calibration.dataset.self=-1: expected a weight >= 0"),
    ("calibration.dataset={{self:0,c4:0}}", "calibration.dataset=.*: expected at least one text with a weight above 0"),
    ("calibration.dataset={{self:{{wight:1}}}}", "calibration.dataset.self=wight: expected weight, packing, chat_temp"),
    ("eval.perplexity.datasets=[]", "eval.perplexity.datasets=\\[\\]: expected at least one text"),
    ("cache_dir={bad}/short.txt model.placement=stream", "cache_dir={bad}/short.txt: expected a folder that can be"),
    ("calibration.dataset=[c4,c4]", "calibration.dataset=.*: expected each text once"),
    (
        "calibration.dataset={{self:1,{bad}/short.txt:0.001}}",
        "calibration.dataset..*short.txt=0.001: gets no window of 8; expected",
    ),
    ("calibration.dataset=[{bad}/short.txt,self]", ".*short.txt: 0 windows of 16 tokens are too few for the 4 that"),
    ("calibration.dataset={{self:{{chat_template:true}}}}", "calibration.dataset.self.chat_template=true: the token"),
    ("calibration.seq_len=[16,16]", "calibration.seq_len=.*: expected a whole number >= 2, or a list of such, each"),
    ("calibration.seq_len=[16,129]", "calibration.seq_len=129: the model's context ends at 128"),
    ("calibration.num_samples=188", "calibration.dataset=.*187 windows of 16 .* calibration.num_samples=188"),
    ("calibration.seq_len=129", "calibration.seq_len=129: the model's context ends at 128"),
    ("dry_run=true", "dry_run=True: expected false; only the command line prints what a run will take"),
    ("eval.perplexity.seq_len=129", "eval.perplexity.seq_len=129: the model's context ends at 128"),
    ("eval.perplexity.datasets=[{bad}/short.txt]", "eval.perplexity.datasets=.*short.txt: its 3 tokens .* 16"),
    ("eval.perplexity.datasets=[wikitext3]", f"eval.perplexity.datasets=wikitext3: unknown dataset; expected {NAMES}"),
    ("checkpoint.dir={bad}/occupied", "checkpoint.dir={bad}/occupied: not empty; .*checkpoint.overwrite=true"),
    ("checkpoint.dir={bad}/a-file", "checkpoint.dir={bad}/a-file: expected a directory"),
    ("checkpoint.dir={bad}/a-loop", "checkpoint.dir={bad}/a-loop: expected a directory"),
    ("checkpoint.dir={bad}/nowhere/below", "checkpoint.dir={bad}/nowhere/below: expected a directory"),
]  # fmt: skip
if not torch.cuda.is_available():
    BEFORE_WEIGHTS.append(("model.device=cuda", "model.device=cuda: not on this machine, which has .*cpu"))
AT_THE_WEIGHTS = [
    (
        "model.path={bad}/lacking",
        "model.path={bad}/lacking: 1 tensors are missing, as model.layers.2.mlp.up_proj.weight",
    ),
    (
        "model.path={bad}/misshapen",
        "model.path={bad}/misshapen: 1 tensors have another shape .*, as model.layers.2.mlp.up_proj.weight",
    ),
    ("model.path={bad}/nan", "calibration: activations of layer 2 MLP are not finite"),
    ("model.path={bad}/nan method=wanda_sp", "calibration: activations of layer 2 MLP are not finite"),
]

WITH_COVARIANCES = [
    "compensation=linear", "compensation=linear model.placement=auto", "metric=OBS", "metric=OBS model.placement=auto",
    "structure=search", "method=flap_plus", "method=flap_plus model.placement=stream",
]  # fmt: skip


def refused(arguments: str, line: str, base: list[str], bad: Path, run_dir: Path) -> None:
    """Run the arguments as the command line would; the error is one line that matches, and nothing is left."""
    with pytest.raises(ValueError) as caught:
        run(composed(*base, *arguments.format(bad=bad).split()), run_dir)
    assert re.fullmatch(f"{line}.*".format(bad=re.escape(str(bad))), str(caught.value)), str(caught.value)
    assert {path.name for path in run_dir.rglob("*")} <= {
        "evaluation.json",
        "documents.json.gz",
    }  # numbers of the dense model, measured first
    assert [path.name for path in bad.glob("occupied/*")] == ["precious"] and not list(bad.glob(".*"))


@pytest.mark.parametrize(("arguments", "line"), BEFORE_WEIGHTS, ids=[arguments for arguments, _ in BEFORE_WEIGHTS])
def test_refused_before_any_weight_is_loaded(
    arguments: str,
    line: str,
    model_dir: Path,
    text_file: Path,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CheckpointSource, "open", lambda *given: pytest.fail("the weights were loaded"))
    monkeypatch.setattr(CheckpointSource, "read", lambda *given, **more: pytest.fail("the weights were loaded"))
    refused(arguments, line, tiny(model_dir, text_file), bad, tmp_path / "run")


@pytest.mark.parametrize(("arguments", "line"), AT_THE_WEIGHTS, ids=[arguments for arguments, _ in AT_THE_WEIGHTS])
@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_refused_at_the_weights(
    placement: str, arguments: str, line: str, model_dir: Path, text_file: Path, bad: Path, tmp_path: Path
) -> None:
    where = [f"model.placement={placement}", f"cache_dir={tmp_path / 'cache'}"]
    refused(arguments, line, [*tiny(model_dir, text_file), *where], bad, tmp_path / "run")


@pytest.mark.parametrize("choice", WITH_COVARIANCES)
def test_weights_that_are_not_finite_are_refused_with_covariances_too(
    choice: str, model_dir: Path, text_file: Path, bad: Path, tmp_path: Path
) -> None:
    base = [*tiny(model_dir, text_file), f"cache_dir={tmp_path / 'cache'}"]
    line = "calibration: activations of layer 2 MLP are not finite"
    refused(f"model.path={{bad}}/nan {choice}", line, base, bad, tmp_path / "run")


class Disk(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("run", "checkpoint.dir=.*: the pruned model takes 0.000161 GB, and 1e-06 GB are free there; name a place on"),
        (
            "cache",
            "cache_dir: expected 0.000\\d+ GB free on its disk with the checkpoint, .* 'save' takes, and 1e-06 GB",
        ),
    ],
)
def test_a_disk_that_is_too_small_is_refused_before_any_layer_is_read(
    folder: str, line: str, model_dir: Path, text_file: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Disk:
        return Disk(1000 if ("cache" in str(path)) == (folder == "cache") else 10**9)

    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("shutil.disk_usage", usage)
    monkeypatch.setattr(OnDisk, "layer", lambda *_: pytest.fail("a layer was read"))
    base = [*tiny(model_dir, text_file), "eval=[none]", "model.placement=stream", f"cache_dir={tmp_path / 'cache'}"]
    refused("", line, [one for one in base if not one.startswith("eval.")], bad, tmp_path / "run")


NO_ROOM = [
    (
        "",
        FreeMemory(PLENTY, 1000, PLENTY),
        "model.placement=device: expected \\S+ GB free in the host's memory, which the stage",
    ),
    (
        "model.placement=stream",
        FreeMemory(PLENTY, 1000, PLENTY),
        "model.placement=stream: expected .*; take a smaller calib",
    ),
    (
        "model.placement=stream",
        FreeMemory(PLENTY, PLENTY, 1000),
        "cache_dir: expected \\S+ GB free on its disk, .* and 1e-06",
    ),
    (
        "method=flap_plus calibration.num_samples=20",
        FreeMemory(PLENTY, PLENTY, 8 * 10**4),
        "structure.tokens=4096: expected \\S+ GB free on the disk of cache_dir for the hidden states of the search "
        "\\(64 tokens in whole windows\\), and 8e-05 GB are; \\d+ tokens would fit, or take use_cache=false",
    ),
    (
        "method=flap_plus calibration.num_samples=20 use_cache=false",
        FreeMemory(PLENTY, 1000, PLENTY),
        "structure.tokens=4096: expected .* GB are; not one window of 16 fits, or take use_cache=true, which",
    ),
]


@pytest.mark.parametrize(("arguments", "room", "line"), NO_ROOM)
def test_what_cannot_fit_is_refused_with_its_numbers(
    arguments: str,
    room: FreeMemory,
    line: str,
    model_dir: Path,
    text_file: Path,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FreeMemory, "here", lambda *_: room)
    monkeypatch.setattr(CheckpointSource, "open", lambda *given: pytest.fail("the weights were loaded"))
    refused(arguments, line, tiny(model_dir, text_file), bad, tmp_path / "run")


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, FULL), SafetensorError(f"I/O error: {FULL}")], ids=type)
def test_a_disk_that_fills_up_leaves_nothing_and_costs_no_work(
    error: Exception, model_dir: Path, text_file: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, **rest: object) -> None:
        if "00004" in path.name:
            raise error
        save_file(tensors, path, **rest)

    line = r"checkpoint.dir=.*: cannot be written, what was there stays \(.*No space left on device"
    base = [*tiny(model_dir, text_file), "model.placement=stream", f"cache_dir={tmp_path / 'cache'}"]
    with monkeypatch.context() as patch:
        patch.setattr("flap.models.placement.shards.save_file", full)
        patch.setattr(LayerFiles, "link", lambda *_: False)  # a disk without hard links
        refused("", line, base, bad, tmp_path / "run")
    monkeypatch.setattr(LayerFiles, "write", lambda *_: pytest.fail("a layer was pruned again"))
    run(composed(*base), tmp_path / "run")


def test_overwrite_must_be_asked_for(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = [*tiny(model_dir, text_file), f"checkpoint.dir={tmp_path / 'here'}", "eval=[none]"]
    arguments = [argument for argument in arguments if not argument.startswith("eval.")]
    run(composed(*arguments), tmp_path / "first")
    with pytest.raises(ValueError, match=r"here: not empty; .*checkpoint\.overwrite=true"):
        run(composed(*arguments), tmp_path / "second")
    assert not (tmp_path / "second").exists()
    report = run(composed(*arguments, "checkpoint.overwrite=true", "ratio=0.5"), tmp_path / "third")
    assert report.checkpoint == str(tmp_path / "here")
    plan = json.loads((tmp_path / "here" / "flap.json").read_text())["plan"]
    assert plan == json.loads((tmp_path / "third" / "plan.json").read_text())
