"""With a target, flap first trims the vocabulary, then removes heads and neurons if necessary."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from flap.models import CheckpointSource
from flap.pipeline import run
from flap.results import Report
from flap.runs.dry_run import dry_run
from tests.helpers.marks import quick
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB

WIDTH = 32  # number of parameters in one row of the tied embedding
HEAD = 1536  # number of parameters of a KV head with its query heads, the largest removable unit
CONTEXT = ("target.context=100",)
# Bytes of the KV cache: 2 (keys and values) · 4 bytes per value · 4 layers · 4 KV heads · 100
# tokens · 8 channels.
CACHE = 2 * 4 * 4 * 4 * 100 * 8
# For each target, in the unit of this target: the cost of a parameter, and the cost of everything
# else in the dense model.
TARGETS = {
    "bytes": (4, 0),
    "parameters": (1, 0),
    "memory": (4, CACHE),
    "active_parameters": (1, 0),
}
Arguments = Callable[..., list[str]]


@pytest.fixture
def arguments(words_dir: Path, words_file: Path) -> Arguments:
    """Return a function that adds options to the arguments of a tiny run with vocabulary=trim."""
    fixed = ["vocabulary=trim", "eval=none", "ratio=null", "model.device=cpu", "use_cache=false"]
    return lambda *options: [*tiny(words_dir, words_file)[:5], *fixed, *options]


def dense_parameters(model_dir: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(model_dir / "model.safetensors").values())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the two log lines about removed tokens and about removed units (heads and neurons)."""
    return [text for text in caplog.messages if text.startswith(("vocabulary:", "units:"))]


def run_with(arguments: list[str], folder: Path, caplog: pytest.LogCaptureFixture) -> Report:
    """Do a run, and check that it removes as many tokens and units as its dry run predicts."""
    planned = dry_run(composed(*arguments))
    with caplog.at_level(logging.INFO):
        report = run(composed(*arguments), folder)
    assert told(caplog) == list(planned.lines())[1:3]
    assert report.vocabulary["after"] == planned.trimming.after
    assert report.parameters["total_trimmed"] == planned.trimming.parameters
    assert report.weight_passes == planned.passes
    caplog.clear()
    return report


@pytest.mark.parametrize("target", quick(2, TARGETS))
def test_units_are_removed_only_for_what_is_too_large_after_trimming(
    target: str,
    arguments: Arguments,
    words_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    price, beside = TARGETS[target]
    dense = price * dense_parameters(words_dir) + beside
    a_row = price * WIDTH
    options = ("vocabulary.coverage=0.9", *CONTEXT)
    asked = dense - a_row * (VOCAB - 350.5)
    enough = run_with(arguments(f"target.{target}={asked}", *options), tmp_path / "enough", caplog)
    # With vocabulary.coverage=0.9, the run might remove more tokens, but it removes only as many as
    # the target requires.
    assert enough.vocabulary["after"] == 350
    assert enough.target[target]["realised"] == dense - a_row * (VOCAB - 350)
    assert enough.target[target]["dense"] == dense
    assert enough.ratio["realised_decoder"] == 0

    covering = dry_run(composed(*arguments("ratio=0", *options[:1]))).trimming.after
    assert covering < 350
    asked = dense - a_row * (VOCAB - covering) - 10 * price * HEAD
    fewer = run_with(arguments(f"target.{target}={asked}", *options), tmp_path / "fewer", caplog)
    assert fewer.vocabulary["after"] == covering
    assert fewer.ratio["realised_decoder"] > 0
    assert asked - price * HEAD - CACHE / 16 < fewer.target[target]["realised"] <= asked


def test_trimming_makes_no_cache_smaller(
    arguments: Arguments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = run_with(arguments(f"target.kv_cache_bytes={CACHE / 2}", *CONTEXT), tmp_path, caplog)
    assert report.vocabulary["after"] < VOCAB
    assert report.target["kv_cache_bytes"]["realised"] == CACHE / 2


def test_what_is_told_if_trimming_reaches_the_target(
    arguments: Arguments, words_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = dense_parameters(words_dir)
    options = (f"target.parameters={size - 1}", "vocabulary.size=320")
    report = run_with(arguments(*options), tmp_path, caplog)
    trimmed = size - WIDTH * (VOCAB - 320)
    assert report.parameters["total_after"] == trimmed
    assert list(dry_run(composed(*arguments(*options))).lines())[:3] == [
        f"parameters: {size:,} before, {trimmed:,} after (0.00 GB)",
        f"vocabulary: 320 of 512 tokens stay, in a model of {trimmed:,} parameters",
        "units: none is removed, as trimming alone reaches the target",
    ]


def test_what_the_model_answers_is_counted(
    arguments: Arguments, words_dir: Path, tmp_path: Path
) -> None:
    """A run counts the tokens of prompts, and of the answers that the model generates to them.

    Before the model has answered, a dry run counts only the tokens of the prompts, and says that
    the number of tokens that stay is approximate.
    """
    rows = [{"prompt": f"{number} {TEXT[0]}"} for number in range(40)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    options = (
        "ratio=0",
        f"calibration.dataset={prompts}",
        "calibration.answers=self",
        "calibration.max_new_tokens=8",
        "vocabulary.coverage=1",
    )
    planned = list(dry_run(composed(*arguments(*options))).lines())
    assert planned[1].startswith("vocabulary: about ")

    report = run(composed(*arguments(*options)), tmp_path / "run")
    answered = (tmp_path / "run" / "self_calibration_prompts.jsonl").read_text().splitlines()
    old = AutoTokenizer.from_pretrained(words_dir)
    kept = AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint").get_vocab()
    for line in answered:
        assert set(old.tokenize(json.loads(line)["text"])) <= kept.keys()
    assert report.vocabulary["covered"] == 1


def test_text_of_the_model_alone_is_not_known_before_it_is_written(arguments: Arguments) -> None:
    planned = list(dry_run(composed(*arguments("ratio=0", "calibration.dataset=self"))).lines())
    assert planned[1].startswith("vocabulary: at most 512 of 512 tokens stay")


def test_too_small_a_target_is_refused_before_a_weight_is_read(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*arguments("target.parameters=15000"))
    line = r"^target\.parameters=15000: .* at least "
    with pytest.raises(ValueError, match=line):
        dry_run(config)
    monkeypatch.setattr(CheckpointSource, "open", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(ValueError, match=line):
        run(config, tmp_path)
