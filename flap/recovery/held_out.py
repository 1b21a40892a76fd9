"""The divergence on the windows that are not trained on, and how far to go along what a training has learnt.

Legend: N windows · T tokens a window.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from flap.models import PlacedModel
from flap.models.forward import final_states
from flap.recovery.student import Student
from flap.recovery.training import BEST, START
from flap.storage import ranks
from flap.storage.progress import progress

STEP, FARTHEST = 0.5, 4.0  # of the factor


class HeldOut:
    """KL(dense ‖ model) over the whole vocabulary, in nats a token; lower is better. The dense model runs once."""

    @torch.no_grad()
    def __init__(self, teacher: PlacedModel, tokens_NT: Tensor, batch_size: int) -> None:
        self.teacher, self.count = teacher, tokens_NT.numel()
        self.batches = ranks.mine(tokens_NT.split(batch_size))
        self.dense = [final_states(teacher.adapter, batch_NT).cpu() for batch_NT in self.batches]

    @torch.no_grad()
    def nats(self, model: PlacedModel) -> float:
        """Return the divergence of a model."""
        student, nats = Student(model, self.teacher, [], None).eval(), list[float]()
        pairs = list(zip(self.batches, self.dense, strict=True))
        for batch_NT, dense_PD in progress(pairs, "divergence, held out", lambda pair: pair[0].numel()):
            nats.append(student.loss(batch_NT, dense_PD).item() * batch_NT.numel())
        return sum(ranks.together(nats)) / self.count


def extrapolate(student: Student, folder: Path, nats: Callable[[], float]) -> float:
    """Set the parameters to θ₀ + α (θ₁ - θ₀), α = 1, 1.5, 2, … for as long as the divergence falls, and return α.

    θ₀: START in the folder, θ₁: BEST. nats: measures the divergence on the held-out windows. The rate of a short
    training is bounded by the noise of its steps, not by how far their mean may go. As a task vector, whose factor is
    chosen on held-out data (Ilharco et al., arXiv 2212.04089, section 2).
    """
    ends = [load_file(folder / name) for name in (START, BEST)]
    factor, best = 1.0, _at(1.0, student, ends, nats)
    while factor < FARTHEST and (now := _at(factor + STEP, student, ends, nats)) < best:
        factor, best = factor + STEP, now
    _place(factor, student, ends)
    return factor


def _at(factor: float, student: Student, ends: list[dict[str, Tensor]], nats: Callable[[], float]) -> float:
    _place(factor, student, ends)
    return nats()


def _place(factor: float, student: Student, ends: list[dict[str, Tensor]]) -> None:
    for name, tensor in student.state_dict().items():
        tensor.copy_(ends[0][name].lerp(ends[1][name], factor))
