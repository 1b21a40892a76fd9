"""A model with a trimmed vocabulary, from which tokens were removed, learns from the dense model.

The loss agrees with a direct computation.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from flap.data import Batch
from flap.method.recovery import student
from flap.method.recovery.distillation import distil
from flap.method.recovery.student import Student, mean_divergence
from flap.method.recovery.teacher import NOTHING, Teacher, UntrimmedTeacher
from flap.method.vocabulary import KeptTokens, Ranking, Tokens, Trimmed
from flap.method.vocabulary.alignment import NOWHERE, Alignment
from flap.method.vocabulary.rows import cut_rows
from flap.models import PlacedModel, Resident
from tests.cases import tiny_model
from tests.helpers.tokenizers import TEXT, VOCAB, smollm
from tests.method.recovery.small import FULL, SEQ_LEN


class Case(NamedTuple):
    """A tiny model with a trimmed vocabulary, its teacher, and windows of kept tokens."""

    model: PlacedModel
    teacher: UntrimmedTeacher
    tokens_NT: Tensor


def case(kept: int, windows: int = 4) -> Case:
    tokenizer = smollm()
    tokens = Tokens.of(tokenizer, VOCAB)
    names = Ranking.of(tokens, torch.ones(VOCAB)).names[:kept]
    trimmed = Trimmed.of(tokenizer, KeptTokens(tokens, names, 1.0), VOCAB)
    dense, smaller = (Resident(tiny_model("llama-gqa", vocab_size=VOCAB)) for _ in range(2))
    cut_rows(smaller, trimmed.rows_K)
    new = trimmed.tokenizer(" ".join(TEXT) * windows).input_ids
    tokens_NT = torch.tensor(new[: windows * SEQ_LEN]).view(windows, SEQ_LEN)
    return Case(
        smaller, UntrimmedTeacher(dense, Alignment.of(tokenizer, trimmed, VOCAB)), tokens_NT
    )


@torch.no_grad()
def test_predictions_are_learnt_at_common_places_and_tokens_elsewhere() -> None:
    model, teacher, tokens_NT = case(kept=300)
    nats = 0.0
    at_places = 0
    for tokens_T in tokens_NT:
        aligned = teacher.alignment.align(tokens_T)
        p_SV = teacher.model.model(input_ids=aligned.old_S[None]).logits[0].softmax(-1)
        p_SK = teacher.alignment.marginal(p_SV)
        logits_TK = model.model(input_ids=tokens_T[None]).logits[0]
        for t, s in enumerate(aligned.position_T.tolist()[:-1]):
            log_q_K = logits_TK[t].log_softmax(-1)
            if s == NOWHERE:
                nats += float(cross_entropy(logits_TK[t], tokens_T[t + 1]))
            else:
                nats += float(kl_div(log_q_K, p_SK[s], reduction="sum"))
                at_places += 1
    assert 0.3 < at_places / tokens_NT.numel() < 0.9
    loss = mean_divergence(model, teacher, Batch.of(tokens_NT), 2)
    assert loss == pytest.approx(nats / tokens_NT.numel(), rel=1e-4)


def test_if_all_tokens_stay_the_teacher_is_the_dense_model() -> None:
    """If a model keeps all tokens, the training targets are the same as for an untrimmed model.

    At the last position of a window, nothing is learnt, because the next token is not known.
    """
    _, teacher, tokens_NT = case(kept=VOCAB)
    targets = teacher.read(tokens_NT)
    plain = Teacher(teacher.model).read(tokens_NT)
    known_P = torch.arange(tokens_NT.numel()) % SEQ_LEN < SEQ_LEN - 1
    assert torch.equal(targets.token_P[known_P], plain.token_P[known_P])
    assert torch.equal(targets.hidden_PD[known_P], plain.hidden_PD[known_P])
    assert (targets.token_P[~known_P] == NOTHING).all()


def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        model, teacher, tokens_NT = case(kept=300)
        mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
        mask_NT[0, :5] = False
        loss = Student(model, teacher, []).train()(tokens_NT, mask_NT)["loss"]
        loss.backward()
        return loss.detach(), model.model.model.layers[0].mlp.down_proj.weight.grad

    loss, gradient = loss_and_gradient()
    monkeypatch.setattr(student, "LOGITS_BYTES", 4 * VOCAB * 7)
    in_chunks, gradient_in_chunks = loss_and_gradient()
    torch.testing.assert_close(in_chunks, loss, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient_in_chunks, gradient, atol=1e-6, rtol=1e-4)


def test_a_model_that_lost_only_tokens_learns(tmp_path: Path) -> None:
    """Training lowers the loss of a model that has lost tokens, but no heads or neurons.

    The loss begins above 0, because the teacher still has the tokens that the model has lost.
    """
    number = FULL.held_out + FULL.steps * FULL.windows_a_step
    model, teacher, tokens_NT = case(kept=300, windows=number)
    summary = distil(FULL, model, teacher, Batch.of(tokens_NT), tmp_path, seed=0)
    assert summary["best_after_tokens"] > 0
    assert 0 < summary["nats_after"] < 0.9 * summary["nats_before"]
