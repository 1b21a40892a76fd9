"""The training loop keeps the best parameters, stops early, and resumes after a kill."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flap.data import Batch
from flap.method.recovery import Recovery, base
from flap.method.recovery.base import HELD_OUT_WINDOWS
from flap.method.recovery.distillation import distil
from flap.method.recovery.student import Student
from flap.method.recovery.training import (
    BEST,
    KeepBest,
    TrainingProgress,
    last_checkpoint,
    with_rates,
)
from flap.models import Resident
from tests.cases import tokens
from tests.method.recovery.small import FULL, LORA, compressed, dense, equal, recovered, state


@pytest.mark.parametrize(
    ("nats", "patience", "evaluations", "best"),
    [
        ([1.0, 0.5, 0.7, 0.6, 0.4], 2, 4, 1),
        ([1.0, 0.5, 0.7, 0.4, 0.6], 2, 5, 3),
        ([1.0, 1.1, 0.9], 1, 2, 0),
        ([1.0, 0.5, float("nan"), 0.4], 3, 3, 1),
        ([1.0, float("inf"), 0.4], 3, 2, 0),
    ],
)
def test_the_best_is_kept_and_training_ends_without_a_new_one(
    nats: list[float], patience: int, evaluations: int, best: int, tmp_path: Path
) -> None:
    """Training ends after `evaluations` measured losses, and the file BEST has the best parameters.

    The best parameters are those of step `best`.

    nats: the losses on held-out windows, in nats. One loss is measured after each step.
    """
    student = nn.Linear(1, 1)
    keep = KeepBest(student, patience, tmp_path / BEST)
    log = []
    control = SimpleNamespace(should_training_stop=False)
    for step, value in enumerate(nats):
        nn.init.constant_(student.weight, step)
        log.append({"step": step, "eval_loss": value})
        state = SimpleNamespace(log_history=log, global_step=step, is_world_process_zero=True)
        keep.on_evaluate(None, state, control)
        if control.should_training_stop:
            break
    assert len(log) == evaluations
    assert load_file(tmp_path / BEST)["weight"].item() == best


def steps_taken(monkeypatch: pytest.MonkeyPatch, killed_after: int | None = None) -> list[int]:
    """Return a list to which training adds the number of each finished step.

    Training is interrupted after step `killed_after`.
    """
    taken: list[int] = []

    def note(bar: TrainingProgress, args: Any, state: Any, control: Any, **_: Any) -> None:
        taken.append(state.global_step)
        if state.global_step == killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "on_step_end", note)
    return taken


SHORT = 20  # number of training steps


@pytest.mark.long
@pytest.mark.parametrize("recovery", [FULL, LORA, replace(FULL, learning_rate=15.0, patience=2)])
def test_a_training_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    recovery: Recovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With EVERY = 1, the model is evaluated and saved after every 4 training steps. By default, it
    # is evaluated and saved after every 16 steps.
    monkeypatch.setattr(base, "EVERY", 1)
    recovery = replace(recovery, tokens=SHORT * recovery.tokens_a_step)
    undisturbed = compressed()
    expected = recovered(undisturbed, recovery, tmp_path / "undisturbed")
    last = expected["tokens"] // recovery.tokens_a_step
    saved = 0
    for step in (5, 12, SHORT - 1):
        killed_after = min(step, last)
        taken = steps_taken(monkeypatch, killed_after)
        with pytest.raises(KeyboardInterrupt):
            recovered(compressed(), recovery, tmp_path / "killed")
        assert taken == list(range(saved + 1, killed_after + 1))
        saved = (killed_after - 1) // 4 * 4
    taken = steps_taken(monkeypatch)
    model = compressed()
    assert recovered(model, recovery, tmp_path / "killed") == expected
    assert taken[0] == saved + 1
    assert equal(state(model), state(undisturbed))


def test_each_window_of_a_step_is_trained_on_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step has four windows. So in each epoch, one step trains on four of the six windows, and the
    # other two are too few for a step.
    recovery = replace(FULL, tokens=6 * FULL.seq_len, batch_size=4, epochs=2)
    sizes: list[int] = []
    forward = Student.forward

    def noted(student: Student, input_ids: torch.Tensor, token_mask: torch.Tensor) -> Any:
        if student.training:
            sizes.append(len(input_ids))
        return forward(student, input_ids, token_mask)

    monkeypatch.setattr(Student, "forward", noted)
    windows = Batch.of(tokens(HELD_OUT_WINDOWS + 6, FULL.seq_len))
    summary = distil(recovery, Resident(compressed()), dense(), windows, tmp_path, 0)
    assert sizes == [4, 4]
    assert summary["tokens"] == 2 * 4 * FULL.seq_len


def test_a_finished_training_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compressed()
    second = compressed()
    expected = recovered(first, FULL, tmp_path)
    taken = steps_taken(monkeypatch)
    assert recovered(second, FULL, tmp_path) == expected
    assert taken == []
    assert equal(state(first), state(second))


def test_an_unfinished_checkpoint_is_not_used(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    states = {4: '{"step": 4}', 20: '{"step": 20}', 100: "", 120: '{"step": 12'}
    for number, text in states.items():
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-200").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_a_resumed_training_reads_only_tensors_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_taken(monkeypatch, killed_after=20)
    with pytest.raises(KeyboardInterrupt):
        recovered(compressed(), FULL, tmp_path)
    weights_only = {}
    load = torch.load

    def watched(file: Any, *args: Any, **options: Any) -> Any:
        weights_only[Path(file).name] = options["weights_only"]
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", watched)
    steps_taken(monkeypatch)
    recovered(compressed(), FULL, tmp_path)
    assert weights_only.keys() == {"optimizer.pt", "rng_state.pth", "scheduler.pt"}
    assert all(weights_only.values())


def test_rates_of_weights_are_shares_of_their_size_and_those_of_low_rank_updates_are_not() -> None:
    trained = [
        nn.Parameter(torch.full((2, 3), 4.0)),
        nn.Parameter(torch.tensor([3.0, -4.0])),
        nn.Parameter(torch.zeros(2, 0)),
    ]
    rates = [group["lr"] for group in with_rates(trained, FULL)]
    assert rates == pytest.approx([0.015 * 4, 0.015 * 12.5**0.5, 0.0])
    assert [group["lr"] for group in with_rates(trained, LORA)] == [0.01] * 3


def test_a_full_disk_names_the_folder_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    # If the disk has free space, the error has another cause and is raised unchanged.
    with pytest.raises(RuntimeError, match=r"^PytorchStreamWriter"):
        recovered(compressed(), FULL, tmp_path / "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refusal = rf"^{tmp_path}/b: no space for the state of the training \(Pytorch"
    with pytest.raises(OSError, match=refusal):
        recovered(compressed(), FULL, tmp_path / "b")
