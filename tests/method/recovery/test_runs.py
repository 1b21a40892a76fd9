"""Complete runs with training report the training, and resume the training if they were killed."""

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
    """Return the report of a run without training."""
    return run_tiny(tmp_path_factory.mktemp("plain"), "recover=none")


@pytest.fixture(scope="module")
def trained(run_tiny: RunTiny, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return run_tiny(tmp_path_factory.mktemp("trained"), *RECOVER)


def test_the_report_says_what_was_trained(
    trained: Report, plain: Report, text_file: Path, tmp_path: Path
) -> None:
    recovery = trained.recovery
    assert recovery["choice"] == "full"
    assert recovery["tokens"] == recovery["best_after_tokens"] == 2432
    assert recovery["nats_after"] < 0.9 * recovery["nats_before"]
    assert recovery["nats_by_tokens"][0][0] == 0
    assert trained.seconds["recover"] > 0
    assert trained.sources["recovery"] == str(text_file)
    assert f"{NAME} is measured on the recovery text itself" in trained.warnings
    assert trained.layers == plain.layers
    assert trained.parameters == plain.parameters
    trained.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").recovery["nats_after"] == recovery["nats_after"]


def test_the_model_is_measured_before_and_after(trained: Report, plain: Report) -> None:
    numbers = {which: measured[NAME] for which, measured in trained.evaluation.items()}
    assert trained.evaluation["compressed"] == plain.evaluation["pruned"]
    assert numbers["pruned"] != numbers["compressed"]
    # `trained.recovery` has the standard errors of differences between the model after training and
    # the model before training. `trained.difference_stderr` has the standard errors of differences
    # from the dense model.
    error = trained.recovery["difference_stderr"][NAME]
    assert error > 0
    assert error != trained.difference_stderr[NAME]

    [row] = [line for line in markdown(trained).splitlines() if line.startswith(f"| {NAME} |")]
    cells = row.split("|")
    shown = [f"{numbers[which]:,.3f}" for which in ("dense", "compressed", "pruned")]
    assert [cell.split()[0] for cell in cells[2:5]] == shown
    change = numbers["pruned"] - numbers["compressed"]
    assert cells[6].strip().startswith(f"{change:+,.2f} ± {error:,.2f} (")
    assert "compressed" not in markdown(plain)


def test_the_trained_model_is_what_is_saved_and_measured(
    trained: Report, plain: Report, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    assert trained.checkpoint is not None
    ids = tokenizer(text_file.read_text()).input_ids
    tokens_NT = torch.tensor(ids)[:320].reshape(-1, 16)
    with torch.no_grad():
        logits_NTV = load(trained.checkpoint)(input_ids=tokens_NT).logits
    loss = cross_entropy(logits_NTV[:, :-1].flatten(0, 1), tokens_NT[:, 1:].flatten())
    perplexity = loss.exp().item()
    assert perplexity == pytest.approx(trained.evaluation["pruned"][NAME], rel=1e-6)
    assert abs(perplexity - plain.evaluation["pruned"][NAME]) > 1


def test_a_killed_training_resumes(
    run_tiny: RunTiny, trained: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def note(bar: TrainingProgress, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken.append(state.global_step)
        if taken == list(range(1, 19)):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "on_step_end", note)
    options = [*RECOVER, f"cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "run", *options)
    report = run_tiny(tmp_path / "run", *options)
    assert taken == [*range(1, 19), 17, 18, 19]
    assert report.recovery == trained.recovery
    assert report.evaluation == trained.evaluation
    assert not [path for path in tmp_path.glob("cache/streams/*") if path.suffix != ".lock"]
