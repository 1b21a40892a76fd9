"""Whole runs with recovery: what they report and store, how they resume, what they refuse before weights are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.method.recovery.training import TrainingProgress
from flap.results import Report, markdown

RECOVER = [
    "recover=full",
    "recover.tokens=2432",
    "recover.seq_len=16",
    "recover.learning_rate=0.015",
]
NAME = "words.txt/perplexity@16"
RunTiny = Callable[..., Report]


@pytest.fixture(scope="module")
def plain(run_tiny: RunTiny, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run without recovery."""
    return run_tiny(tmp_path_factory.mktemp("plain"), "recover=none")


@pytest.fixture(scope="module")
def trained(run_tiny: RunTiny, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run_tiny(tmp_path_factory.mktemp("trained"), *RECOVER)


def test_the_report_says_what_was_trained(
    trained: Report, plain: Report, text_file: Path, tmp_path: Path
) -> None:
    found = trained.recovery
    assert found["choice"] == "full" and found["tokens"] == found["best_after_tokens"] == 2432
    assert found["nats_after"] < 0.9 * found["nats_before"] and found["nats_by_tokens"][0][0] == 0
    assert trained.seconds["recover"] > 0 and trained.sources["recovery"] == str(text_file)
    assert f"{NAME} is measured on the recovery text itself" in trained.warnings
    assert trained.layers == plain.layers and trained.parameters == plain.parameters
    trained.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").recovery["nats_after"] == found["nats_after"]


def test_the_model_is_measured_before_and_after(trained: Report, plain: Report) -> None:
    assert (
        trained.evaluation["compressed"]
        == plain.evaluation["pruned"]
        != trained.evaluation["pruned"]
    )
    [row] = [line for line in markdown(trained).splitlines() if line.startswith(f"| {NAME} |")]
    shown = [
        f"{trained.evaluation[which][NAME]:,.3f}" for which in ("dense", "compressed", "pruned")
    ]
    assert [cell.split()[0] for cell in row.split("|")[2:5]] == shown
    assert "compressed" not in markdown(plain)
    error = trained.recovery["difference_stderr"][NAME]
    change = trained.evaluation["pruned"][NAME] - trained.evaluation["compressed"][NAME]
    assert (
        0 < error != trained.difference_stderr[NAME]
    )  # paired with the model before, and with the dense one
    assert row.split("|")[6].strip().startswith(f"{change:+,.2f} ± {error:,.2f} (")


def test_the_trained_model_is_what_is_saved_and_measured(
    trained: Report, plain: Report, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    assert trained.checkpoint is not None
    words = torch.tensor(tokenizer(text_file.read_text()).input_ids)[:320].reshape(-1, 16)
    with torch.no_grad():
        logits = load(trained.checkpoint)(input_ids=words).logits
    again = cross_entropy(logits[:, :-1].flatten(0, 1), words[:, 1:].flatten()).exp().item()
    assert again == pytest.approx(trained.evaluation["pruned"][NAME], rel=1e-6)
    assert abs(again - plain.evaluation["pruned"][NAME]) > 1


def test_a_killed_training_goes_on(
    run_tiny: RunTiny, trained: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def note(bar: TrainingProgress, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken.append(state.global_step)
        if taken == list(range(1, 19)):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "on_step_end", note)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "run", *RECOVER, f"cache_dir={tmp_path / 'cache'}")
    again = run_tiny(tmp_path / "run", *RECOVER, f"cache_dir={tmp_path / 'cache'}")
    assert taken == [*range(1, 19), 17, 18, 19]
    assert again.recovery == trained.recovery and again.evaluation == trained.evaluation
    assert not [path for path in tmp_path.glob("cache/streams/*") if path.suffix != ".lock"]
