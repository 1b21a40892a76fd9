"""The dense model as the teacher, which says what the student learns at each position of a window.

The dense model is the model before compression. The student is the compressed model. If the
student's vocabulary was trimmed, each removed token is spelled with several tokens that stayed.

Legend of tensor suffixes: N: windows · T: tokens in a window · S: tokens of the same text in the
teacher's vocabulary · P: positions in the windows · D: hidden size · V: tokens of the teacher's
vocabulary · K: tokens of the student's vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.utils.rnn import pad_sequence

from flap.method.vocabulary.alignment import NOWHERE, Alignment
from flap.models import PlacedModel
from flap.models.forward import final_states

# values of `Targets.token_P` at positions where the student does not learn the next token itself
PREDICTED = -1  # the student learns the distribution that the teacher predicts
NOTHING = -100  # the student learns nothing at the last position, which has no next token


@dataclass(frozen=True, eq=False)
class Targets:
    """What the student learns at each position of some windows."""

    # the teacher's final hidden states, from which the teacher's predictions are computed
    hidden_PD: Tensor
    # at each position, the id of the next token if the student learns this token; otherwise
    # PREDICTED or NOTHING
    token_P: Tensor

    def __getitem__(self, index: Any) -> "Targets":
        return Targets(self.hidden_PD[index], self.token_P[index])


class Teacher:
    """The dense model as the teacher of a student with the same vocabulary.

    The student learns the teacher's predictions at every position.
    """

    def __init__(self, model: PlacedModel) -> None:
        self.model = model

    @torch.no_grad()
    def read(self, tokens_NT: Tensor) -> Targets:
        """Return what the student learns at each position of these windows."""
        hidden_PD = final_states(self.model.adapter, tokens_NT)
        token_P = torch.full(hidden_PD.shape[:1], PREDICTED, device=hidden_PD.device)
        return Targets(hidden_PD, token_P)

    def loss(self, targets: Targets, logits_PK: Tensor) -> Tensor:
        """Return the loss of the student's logits in nats, summed over positions."""
        return divergence(self._logits(targets.hidden_PD), logits_PK)

    @torch.no_grad()
    def _logits(self, hidden_PD: Tensor) -> Tensor:
        return self.model.adapter.logits(hidden_PD).float()


class UntrimmedTeacher(Teacher):
    """The dense model as the teacher of a student whose vocabulary was trimmed.

    The teacher has the whole vocabulary, and reads the text of a window in tokens of the whole
    vocabulary. Where a token of the teacher and a token of the student end at the same place in the
    text, the student learns the teacher's prediction, as a distribution over the student's tokens
    (`Alignment.marginal`). Inside a removed token, the student learns the spelling of this token:
    the loss is the cross-entropy of the next token of the spelling.
    """

    def __init__(self, model: PlacedModel, alignment: Alignment) -> None:
        super().__init__(model)
        self.alignment = alignment

    @torch.no_grad()
    def read(self, tokens_NT: Tensor) -> Targets:
        """Return what the student learns at each position of these windows."""
        aligned = [self.alignment.align(tokens_T) for tokens_T in tokens_NT.cpu()]
        old_NS = pad_sequence([one.old_S for one in aligned], batch_first=True)
        hidden_NSD = final_states(self.model.adapter, old_NS).unflatten(0, old_NS.shape)
        position_NT = torch.stack([one.position_T for one in aligned]).to(hidden_NSD.device)

        found_NT = position_NT != NOWHERE
        window_N1 = torch.arange(len(tokens_NT), device=hidden_NSD.device)[:, None]
        hidden_NTD = hidden_NSD[window_N1, position_NT.clamp(min=0)]
        token_NT = tokens_NT.to(hidden_NSD.device).roll(-1, dims=1)
        token_NT[:, -1] = NOTHING
        token_NT[found_NT] = PREDICTED
        return Targets(hidden_NTD.flatten(0, 1), token_NT.flatten())

    def loss(self, targets: Targets, logits_PK: Tensor) -> Tensor:
        """Return the loss of the student's logits in nats, summed over positions."""
        predicted_P = targets.token_P == PREDICTED
        p_PV = self._logits(targets.hidden_PD[predicted_P]).softmax(-1)
        p_PK = self.alignment.marginal(p_PV)
        log_q_PK = logits_PK.log_softmax(-1)
        of_predictions = kl_div(log_q_PK[predicted_P], p_PK, reduction="sum")
        spelled_P = ~predicted_P
        return of_predictions + cross_entropy(
            logits_PK[spelled_P],
            targets.token_P[spelled_P],
            ignore_index=NOTHING,
            reduction="sum",
        )


def divergence(dense_PV: Tensor, logits_PV: Tensor) -> Tensor:
    """Return the divergence KL(p ‖ q) = Σ p (log p - log q) in nats, summed over positions.

    dense_PV: the logits of p, the dense model's prediction. logits_PV: the logits of q, the
        student's prediction.
    """
    return kl_div(
        logits_PV.log_softmax(-1), dense_PV.log_softmax(-1), reduction="sum", log_target=True
    )
