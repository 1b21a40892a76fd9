"""The module that transformers' Trainer trains. It returns the loss of the compressed model.

The teacher is the dense model (the model before compression), whose predictions the compressed
model learns.

Legend of tensor suffixes: N: windows · T: tokens in a window · D: hidden size · P: positions in the
windows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flap.data import Batch
from flap.method.recovery.teacher import Targets, Teacher
from flap.models import PlacedModel
from flap.models.forward import final_states
from flap.runtime import ranks
from flap.runtime.progress import shared_out

# The logits are computed for one chunk of positions after another. The float32 logits of a chunk
# have at most this number of bytes. A few tensors of this size are in memory at a time.
LOGITS_BYTES = 2**26


class Student(nn.Module):
    """A module whose parameters are the trained parameters of the compressed model.

    Its `forward` returns the loss. Trainer's checkpoints of this module contain only the trained
    parameters, and do not depend on the compressed model's class or the names of its parameters.
    """

    def __init__(self, model: PlacedModel, teacher: Teacher, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.placed = model
        self.teacher = teacher
        self.trained = nn.ParameterList(trained)
        # for held-out windows, the mean number of positions per window at which the loss is
        # computed; 0 if the loss is computed at all positions
        self.judged_positions = 0.0
        most_tokens = max(model.adapter.vocab_size, teacher.model.adapter.vocab_size)
        self.chunk = max(1, LOGITS_BYTES // (4 * most_tokens))

    def train(self, mode: bool = True) -> "Student":
        """Set the training mode of this module and of the compressed model.

        The compressed model is not a submodule, so `nn.Module.train` does not reach it.
        """
        self.placed.model.train(mode)
        return super().train(mode)

    def forward(self, input_ids: Tensor, token_mask: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of the next-token predictions, in nats per token.

        `Teacher.loss` defines the loss of a prediction. The gradient of the loss with respect to
        the final hidden states is computed together with the loss, for one chunk of positions after
        another. So the logits of a chunk are computed only once, and are freed before the next
        chunk. The logits of a whole batch can take more memory than the model.

        input_ids: the tokens of the windows, of shape (N, T).
        token_mask: true for the tokens whose predictions are included in the mean, of shape (N, T).
        """
        targets = self.teacher.read(input_ids)
        hidden_PD = final_states(self.placed.adapter, input_ids)
        predicted_P = Batch(input_ids, token_mask).predicted_P
        if predicted_P is not None:
            targets = targets[predicted_P]
            hidden_PD = hidden_PD[predicted_P]
        leaf_PD = hidden_PD.detach().requires_grad_(hidden_PD.requires_grad)
        nats, gradient_PD = self._loss(targets, leaf_PD)
        positions = self._positions(len(input_ids), len(hidden_PD))
        return {"loss": _Loss.apply(nats / positions, hidden_PD, gradient_PD / positions)}

    def _positions(self, windows: int, positions: int) -> float:
        """Return the divisor with which the mean loss is computed from the sum of a batch's losses.

        In training, the divisor is the mean of `positions` over all processes, because DDP averages
        the gradients of the processes. In evaluation, the divisor is proportional to the number of
        windows, because Trainer weights the loss of each batch by the number of its windows.

        windows: number of windows in the batch. positions: number of positions in the batch at
            which the loss is computed.
        """
        if self.training:
            every = ranks.gather(positions)
            return sum(every) / len(every) or 1
        return self.judged_positions * windows or positions or 1

    def _loss(self, targets: Targets, hidden_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss in nats, summed over positions, and the gradient of this sum.

        The gradient is taken with respect to hidden_PD. It is 0 if hidden_PD requires no gradient.
        """
        nats = torch.zeros((), device=hidden_PD.device)
        gradient_PD = torch.zeros_like(hidden_PD)
        for start in range(0, len(hidden_PD), self.chunk):
            chunk = slice(start, start + self.chunk)
            hidden = hidden_PD[chunk]
            of_chunk = self.teacher.loss(targets[chunk], self.placed.adapter.logits(hidden).float())
            if of_chunk.requires_grad:
                [gradient_PD[chunk]] = torch.autograd.grad(of_chunk, hidden)
            nats += of_chunk.detach()
        return nats, gradient_PD


class _Loss(torch.autograd.Function):
    """An autograd function for a loss whose gradient with respect to hidden_PD is already computed.

    The forward pass returns the loss, and the backward pass multiplies this gradient by the
    gradient that it gets for the loss.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, hidden_PD: Tensor, gradient_PD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_PD)
        return loss

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[None, Tensor, None]:
        return None, of_loss * ctx.saved_tensors[0], None


@torch.no_grad()
def mean_divergence(model: PlacedModel, teacher: Teacher, windows: Batch, batch_size: int) -> float:
    """Return the mean loss of the model's predictions of counted tokens, in nats per token.

    A token of the windows is counted if its mask is true. `Teacher.loss` defines the loss. If the
    teacher and the model have the same vocabulary, the result is KL(dense ‖ model).
    """
    student = Student(model, teacher, []).eval()

    def measure(batch: Batch) -> tuple[float, int]:
        predicted_P = batch.predicted_P
        positions = batch.numel() if predicted_P is None else int(predicted_P.sum())
        loss = student(batch.tokens_NT, batch.mask_NT)["loss"]
        return float(loss.item() * positions), positions

    measured = shared_out(windows.split(batch_size), "divergence, held out", measure, Batch.numel)
    nats, positions = map(sum, zip(*measured, strict=True))
    return nats / max(1, positions)
