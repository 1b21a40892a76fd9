"""The divergence on held-out windows, and how far a model goes along what a training has learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flap.models import Resident
from flap.recovery.held_out import FARTHEST, HeldOut, extrapolate
from flap.recovery.student import Student
from flap.recovery.training import BEST, START
from tests.cases import tiny_model, tokens
from tests.recovery.small import compressed


def test_the_mean_weighs_windows_equally_whatever_the_batches() -> None:
    model, dense = Resident(compressed()), Resident(tiny_model("llama-gqa"))
    one_by_one = [HeldOut(dense, window_NT, 1).nats(model) for window_NT in tokens().split(1)]
    assert HeldOut(dense, tokens(), 4).nats(model) == pytest.approx(sum(one_by_one) / len(one_by_one), rel=1e-5)


@pytest.mark.parametrize(
    ("nats", "factor"),
    [
        (lambda x: (x - 2.2) ** 2, 2.0),
        (lambda x: x, 1.0),
        (lambda x: -x, FARTHEST),
        (lambda x: torch.nan if x > 2 else -x, 2.0),
    ],
)
def test_it_goes_on_for_as_long_as_the_divergence_falls(
    nats: Callable[[float], float], factor: float, tmp_path: Path
) -> None:
    """From 10, trained to 11: 10 + factor."""
    parameter = nn.Parameter(torch.tensor([12.5]))  # wherever the last step of the training has left it
    student = Student(Resident(compressed()), Resident(compressed()), [parameter], None)
    for name, value in {START: 10.0, BEST: 11.0}.items():
        save_file({"trained.0": torch.tensor([value])}, tmp_path / name)
    assert extrapolate(student, tmp_path, lambda: nats(parameter.item() - 10)) == factor
    assert parameter.item() == 10 + factor
