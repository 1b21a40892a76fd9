"""dry_run=true estimates memory, disk space and time. The tests compare estimates with real runs.

Runs that would need too much memory or disk space are refused.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from flap.pipeline import run
from flap.runs import dry_run as module
from flap.runs.dry_run import MARGIN, DryRun, dry_run
from flap.runs.layer_speed import LayerSpeed, layer_speed
from flap.runs.pruning_work import PLAIN, PruningWork
from flap.runs.time_needed import time_needed
from flap.runtime.agenda import about
from tests.helpers.marks import quick
from tests.helpers.runs import composed

Dry = Callable[..., DryRun]
PLENTY = 10**12


@pytest.fixture
def dry(base: list[str], tmp_path: Path) -> Dry:
    """Return a function that does a dry run on the tiny model with additional arguments."""
    base = [*base, "model.device=cpu", f"cache_dir={tmp_path / 'cache'}"]
    return lambda *arguments: dry_run(composed(*base, *arguments))


@pytest.mark.long
def test_the_config_alone_is_enough(tmp_path: Path) -> None:
    config = LlamaConfig(num_hidden_layers=3, hidden_size=64, intermediate_size=128)
    config.save_pretrained(tmp_path / "model")
    secret = ["tracking=mlflow", "tracking.uri=http://alice:s3cret@127.0.0.1:9"]
    folders = [f"model.path={tmp_path / 'model'}", f"hydra.run.dir={tmp_path / 'run'}"]
    arguments = [*folders, *secret, "dry_run=true", "method=flap_plus"]
    done = subprocess.run(
        [sys.executable, "-m", "flap", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("parameters: 4,219,")
    assert lines[2].startswith("forward passes over the calibration tokens: ")
    table = ["GB", "device", "auto", "stream", "free"]
    assert [line.split()[0] for line in lines[3:8]] == table
    assert lines[8].startswith("time here: about ")
    left_out = "not in this time: loading and saving, text that the model writes, perplexity ("
    assert lines[9].startswith(left_out)
    assert not (tmp_path / "run" / "report.json").exists()
    written = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("127.0.0.1:9" in text for text in written) and not any(
        "s3cret" in text for text in written
    )


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("use", ["calibration", "recover"])
def test_prompts_that_no_context_holds_are_refused_before_a_weight_is_read(
    use: str, dry: Dry, base: list[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "long.jsonl"
    prompts.write_text(json.dumps({"prompt": "the cat sat " * 50}) + "\n")
    arguments = [f"{use}.dataset={prompts}", "calibration.answers=self"]
    if use == "recover":
        arguments += ["recover=full", "recover.seq_len=16"]
    line = (
        rf"^{use}\.dataset={prompts}: none of its 1 prompts .* context of 128 tokens: .* has 150 "
    )
    with pytest.raises(ValueError, match=line):
        dry(*arguments)
    with pytest.raises(ValueError, match=line):
        run(composed(*base, *arguments), tmp_path / "run")


PASSES = [
    ((), 3),
    (("method=wanda_sp",), 1),
    (("method=mag_sp",), 2),
    (("method=flap_plus",), 2),
    (("compensation=linear",), 3),
    (("metric=taylor",), 4),
    (("metric=OBS", "compensation=linear"), 2),
]


@pytest.mark.parametrize(("arguments", "passes"), quick(1, PASSES))
def test_parameters_and_passes_are_true(
    arguments: tuple[str, ...], passes: int, dry: Dry, base: list[str], tmp_path: Path
) -> None:
    expected = dry(*arguments, "ratio=0.4")
    report = run(composed(*base, *arguments, "ratio=0.4", "use_cache=false"), tmp_path / "run")
    assert report.weight_passes == expected.passes == passes
    after = report.parameters["decoder_before"] - expected.removed
    assert report.parameters["decoder_after"] == pytest.approx(after, rel=0.01)


SMOLLM2 = LlamaConfig(  # a config with the shapes of SmolLM2-135M
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
# The table of docs/scale.md has these numbers of forward passes, which were measured with 128
# windows of 128 tokens.
MEASURED_PASSES = [
    (("method=flap",), 1.16),
    (("metric=OBS", "structure.scale=relative", "compensation=linear"), 3.4),
    (("method=flap_plus",), 11.2),
]


@pytest.mark.parametrize(("arguments", "passes"), MEASURED_PASSES)
def test_forward_passes_are_those_of_the_documentation(
    arguments: tuple[str, ...], passes: float, tmp_path: Path
) -> None:
    SMOLLM2.save_pretrained(tmp_path)
    windows = [
        "calibration=boolq-passages",
        "calibration.num_samples=128",
        "calibration.seq_len=128",
        "calibration.answers=given",
    ]
    planned = dry_run(composed(f"model.path={tmp_path}", "model.device=cpu", *arguments, *windows))
    found = planned.work.forward_passes(planned.adapter)
    assert found == pytest.approx(passes, rel=0.08)


def test_work_is_that_of_the_stages_that_run(dry: Dry) -> None:
    """The estimated work depends on the stages that the run has.

    Without calibration, the work is zero. A linear compensation needs one more forward pass over
    the calibration windows, and structure=search needs further passes for its trials.
    """
    assert dry("metric=magnitude", "compensation=none").work == PruningWork()
    plain = dry().work
    assert plain.tokens == 8 * 16 and plain.products == plain.positions == 0
    linear = dry("compensation=linear").work
    assert linear.passes == plain.passes + 1 and linear.products > 0
    closed = dry("metric=OBS", "compensation=linear").work
    assert closed.passes == 2 and closed.products == pytest.approx(2 * linear.products)
    search = dry("metric=OBS", "compensation=linear", "structure=search").work
    assert search.passes > 3 and search.positions > 0
    assert dry("method=wanda_sp").work.passes == 2


SPEED = LayerSpeed(layers=2.0, head=0.5, written=10.0, product=1e-6)


def test_time_is_counted_from_the_speed_of_the_layers(dry: Dry, text_file: Path) -> None:
    planned = dry("method=flap", "calibration.num_samples=8", "ratio=0.5")
    needed = time_needed(planned.choices, planned.source, planned.work, kept=0.5)
    pruning = PLAIN * 8 * 16 * SPEED.layers
    [task] = needed.tasks
    evaluation = 1.5 * task.workload.read * 2.5
    line, others = needed.lines(SPEED)
    assert line == (
        f"time here: about {about(pruning + evaluation)} "
        f"(pruning {about(pruning)}, evaluation {about(evaluation)})"
    )
    assert others == "not in this time: loading and saving"


def test_text_that_the_model_writes_takes_time(dry: Dry) -> None:
    planned = dry("calibration.dataset=self")
    needed = time_needed(planned.choices, planned.source, planned.work, kept=1.0)
    assert needed.written >= 8 * 16
    line, _ = needed.lines(SPEED)
    assert f"text that the model writes {about(needed.written * SPEED.written)}" in line


def test_the_time_lists_what_it_leaves_out(dry: Dry) -> None:
    planned = dry("recover=reconstruct")
    needed = time_needed(planned.choices, planned.source, planned.work, kept=1.0)
    *_, others = needed.lines(SPEED)
    assert others == "not in this time: loading and saving, training"


@pytest.mark.usefixtures("no_weights")
def test_layers_are_timed_without_weights(dry: Dry) -> None:
    planned = dry("method=flap_plus", "calibration=boolq-passages", "calibration.seq_len=16")
    speed = layer_speed(planned.source, batch_size=2, seq_len=16)
    assert min(speed) > 0
    # Generating a text token by token takes longer per token than reading a whole window.
    assert speed.written > speed.layers


def test_a_device_that_is_not_here_is_not_timed(dry: Dry) -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"  # no machine has both cuda and mps
    [line] = dry(f"model.device={absent}").time_lines()
    assert line == f"time: not measured (this machine has no {absent})"


def test_only_one_layer_of_a_streamed_model_is_on_the_device(dry: Dry) -> None:
    device, stream = (dry().needs(placement) for placement in ("device", "stream"))
    assert (
        stream.weights < device.weights
        and stream.device < device.device
        and stream.disk > device.disk == 0
    )
    # The statistics for OBS include covariances, which need additional memory.
    assert dry("metric=OBS").needs("device").statistics > device.statistics


def test_a_backward_pass_takes_memory_for_each_window_of_a_batch(base: list[str]) -> None:
    def device_memory(*arguments: str) -> float:
        config = composed(*base, "model.device=cpu", *arguments)
        return dry_run(replace(config, eval={})).needs("device").device

    plain = device_memory()
    single = device_memory("metric=taylor", "calibration.batch_size=1")
    several = device_memory("metric=taylor", "calibration.batch_size=8")
    assert plain < single < several


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "room", "line"),
    [
        (
            (),
            (PLENTY, 1000, PLENTY),
            r"model\.placement=device: expected \S+ GB free in the host's memory, and 1e-06",
        ),
        (
            (),
            (PLENTY, 1000, PLENTY),
            r"are; take model\.placement=stream, or a smaller calibration\.batch_size \(",
        ),
        (  # taylor does not support streaming, so the message does not recommend it
            ("metric=taylor",),
            (PLENTY, 1000, PLENTY),
            r"are; take a smaller calibration\.batch_size \(",
        ),
        (  # the message recommends no options that are already set
            ("model.placement=stream", "calibration.batch_size=1"),
            (PLENTY, 1000, PLENTY),
            "are; take a machine with more memory",
        ),
        (
            ("model.placement=stream",),
            (PLENTY, PLENTY, 1000),
            r"cache_dir: expected \S+ GB free on its disk, and 1e-06",
        ),
        (
            ("method=flap_plus", "calibration.num_samples=20"),
            (PLENTY, PLENTY, 1000),
            "fewer structure.tokens",
        ),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_a_weight_is_read(
    arguments: tuple[str, ...],
    room: tuple[int, int, int],
    line: str,
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "free", lambda *_: room)
    config = composed(*base, f"cache_dir={tmp_path / 'cache'}", *arguments)
    with pytest.raises(ValueError, match=line) as caught:
        run(config, tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message
    assert "(dry_run=true shows all placements)" in message


def test_what_may_fit_is_not_refused(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dry("model.placement=stream")
    disk = int(expected.needs("stream").disk / MARGIN) + 1
    monkeypatch.setattr(module, "free", lambda *_: (PLENTY, PLENTY, disk))
    expected.check()
    with pytest.raises(ValueError, match="cache_dir"):
        dry("model.placement=stream", "calibration.num_samples=64").check()


PACKAGED = [
    "model.device=cpu",
    "eval.perplexity.max_tokens=2048",
    "calibration.seq_len=128",
    "ratio=0.2",
]
MEASURED = [("method=flap", "stream", 64), ("method=wanda_sp", "auto", 64)]
THOROUGH = [
    ("method=flap", "device", 64),
    ("metric=OBS", "device", 64),
    ("compensation=linear", "stream", 64),
    ("method=flap_plus calibration=boolq-self structure.tokens=256", "device", 32),
]
MEASURED += [pytest.param(*case, marks=pytest.mark.thorough) for case in THOROUGH]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("choices", "placement", "windows"), MEASURED)
def test_a_run_takes_what_is_estimated(
    choices: str, placement: str, windows: int, tmp_path: Path
) -> None:
    """For the packaged model, the estimated peak memory is correct within a factor of 1.5.

    A process inherits the recorded peak memory of its parent process, and a pytest process may use
    much memory. So a small shell starts the process of the run.
    """
    arguments = [
        *choices.split(),
        *PACKAGED,
        f"model.placement={placement}",
        f"calibration.num_samples={windows}",
    ]
    command = [
        sys.executable,
        "-m",
        "flap",
        *arguments,
        "use_cache=false",
        f"hydra.run.dir={tmp_path}",
    ]
    subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], check=True, capture_output=True)
    measured = json.loads((tmp_path / "report.json").read_text())["peak_memory_bytes"]["host"]
    expected = dry_run(composed(*arguments, "use_cache=false")).needs(placement).host
    assert 1 / 1.5 < expected / measured < 1.5
