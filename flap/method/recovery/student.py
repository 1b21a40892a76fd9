"""The compressed model as Trainer sees it: a module that returns its divergence from the dense one.

Legend: N windows · T tokens a window · D hidden size · P positions · V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from flap.data import Batch
from flap.models import PlacedModel
from flap.models.forward import final_states
from flap.runtime import ranks
from flap.runtime.progress import shared_out

# Size of the float32 logits of a chunk of positions. The loss has a few tensors of this size at a
# time.
LOGITS_BYTES = 2**26


class Student(nn.Module):
    """A module that has only the trained parameters, and whose `forward` returns the loss.

    So Trainer's checkpoints hold only the trained parameters, whatever the class, names and shapes
    of the model are.
    """

    def __init__(
        self, model: PlacedModel, teacher: PlacedModel, trained: list[nn.Parameter]
    ) -> None:
        super().__init__()
        self.placed = model
        self.teacher = teacher
        self.trained = nn.ParameterList(trained)
        # mean number of positions in a held-out window at which the loss is computed; 0: all
        # positions, or unknown
        self.judged_positions = 0.0
        self.chunk = max(1, LOGITS_BYTES // (4 * model.adapter.vocab_size))

    def train(self, mode: bool = True) -> "Student":
        """Set the mode of the model as well, which is not a submodule."""
        self.placed.model.train(mode)
        return super().train(mode)

    def forward(self, input_ids: Tensor, token_mask: Tensor) -> dict[str, Tensor]:
        """Return KL(dense ‖ compressed) of the next-token distributions, in nats a token.

        It is a mean over the positions that predict a token which counts. The gradient at the final
        hidden states is computed at the same time, for one chunk of positions after another, so
        that no logits are kept or computed twice. The logits of a batch, over a whole vocabulary,
        would take more memory than the model.

        input_ids: tokens_NT. token_mask: mask_NT, true for tokens that count.
        """
        with torch.no_grad():
            dense_PD = final_states(self.teacher.adapter, input_ids)
        hidden_PD = final_states(self.placed.adapter, input_ids)
        predicted_P = Batch(input_ids, token_mask).predicted_P
        if predicted_P is not None:
            dense_PD = dense_PD[predicted_P]
            hidden_PD = hidden_PD[predicted_P]
        leaf_PD = hidden_PD.detach().requires_grad_(hidden_PD.requires_grad)
        nats, gradient_PD = self._divergence(dense_PD, leaf_PD)
        positions = self._positions(len(input_ids), len(hidden_PD))
        return {"loss": _Loss.apply(nats / positions, hidden_PD, gradient_PD / positions)}

    def _positions(self, windows: int, positions: int) -> float:
        """Return the number by which the sum over a batch is divided.

        In training it is the mean over the processes, because DDP averages their gradients. In
        evaluation it is the same for all windows, because Trainer averages batches.
        """
        if self.training:
            every = ranks.gather(positions)
            return sum(every) / len(every) or 1
        return self.judged_positions * windows or positions or 1

    def _divergence(self, dense_PD: Tensor, hidden_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence in nats, summed over positions, and its gradient.

        The gradient is 0 if the hidden states need none.
        """
        nats = torch.zeros((), device=hidden_PD.device)
        gradient_PD = torch.zeros_like(hidden_PD)
        if not len(hidden_PD):  # no token of these windows counts
            return nats, gradient_PD
        chunks = zip(
            dense_PD.split(self.chunk),
            hidden_PD.split(self.chunk),
            gradient_PD.split(self.chunk),
            strict=True,
        )
        for dense, hidden, gradient in chunks:
            with torch.no_grad():
                dense_PV = self.teacher.adapter.logits(dense).float()
            of_chunk = divergence(dense_PV, self.placed.adapter.logits(hidden).float())
            if of_chunk.requires_grad:
                gradient.copy_(*torch.autograd.grad(of_chunk, hidden))
            nats += of_chunk.detach()
        return nats, gradient_PD


class _Loss(torch.autograd.Function):
    """A loss whose gradient at the hidden states is known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, hidden_PD: Tensor, gradient_PD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_PD)
        return loss

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[None, Tensor, None]:
        return None, of_loss * ctx.saved_tensors[0], None


def divergence(dense_PV: Tensor, logits_PV: Tensor) -> Tensor:
    """Return Σ p (log p - log q) in nats, summed over positions, from the logits of p and q."""
    return kl_div(
        logits_PV.log_softmax(-1), dense_PV.log_softmax(-1), reduction="sum", log_target=True
    )


@torch.no_grad()
def mean_divergence(
    model: PlacedModel, teacher: PlacedModel, windows: Batch, batch_size: int
) -> float:
    """Return KL(dense ‖ model) over the whole vocabulary, in nats a token; lower is better."""
    student = Student(model, teacher, []).eval()

    def measure(batch: Batch) -> tuple[float, int]:
        predicted_P = batch.predicted_P
        positions = batch.numel() if predicted_P is None else int(predicted_P.sum())
        loss = student(batch.tokens_NT, batch.mask_NT)["loss"]
        return float(loss.item() * positions), positions

    measured = shared_out(windows.split(batch_size), "divergence, held out", measure, Batch.numel)
    nats, positions = map(sum, zip(*measured, strict=True))
    return nats / max(1, positions)
