"""The training loss and its gradient agree with the formula of the KL divergence.

The loss is computed in chunks of positions, which must not change the results.
"""

import pytest
import torch

from flap.data import Batch
from flap.method.recovery import student
from flap.method.recovery.student import Student, mean_divergence
from flap.method.recovery.teacher import Teacher
from flap.models import Resident
from tests.cases import VOCAB, tiny_model, tokens
from tests.method.recovery.small import compressed


def dense_teacher() -> Teacher:
    return Teacher(Resident(tiny_model("llama-gqa")))


def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model = compressed()
        student = Student(Resident(model), dense_teacher(), []).train()
        windows = Batch.of(tokens())
        loss = student(windows.tokens_NT, windows.mask_NT)["loss"]
        loss.backward()
        weight = model.model.layers[0].mlp.down_proj.weight
        return loss.detach(), weight.grad

    loss, gradient = loss_and_gradient()
    monkeypatch.setattr(student, "LOGITS_BYTES", 4 * VOCAB * 11)
    loss_of_chunks, gradient_of_chunks = loss_and_gradient()
    torch.testing.assert_close(loss_of_chunks, loss, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient_of_chunks, gradient, atol=1e-6, rtol=1e-4)


def test_the_mean_weighs_windows_equally_in_any_batches() -> None:
    pruned = Resident(compressed())
    dense = dense_teacher()
    nats = []
    windows = Batch.of(tokens())
    for window in windows.split(1):
        nats.append(mean_divergence(pruned, dense, window, 1))
    mean = sum(nats) / len(nats)
    in_batches = mean_divergence(pruned, dense, windows, 4)
    assert in_batches == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_only_predictions_of_tokens_that_count_are_learnt(share: float) -> None:
    """The loss and its gradient agree with the formula of the KL divergence.

    They also agree if the mask is false for some tokens: the loss is then the mean over the
    predictions of the tokens for which the mask is true.
    """
    model = compressed()
    dense = tiny_model("llama-gqa")
    generator = torch.Generator().manual_seed(0)
    mask_NT = torch.rand(tokens().shape, generator=generator) < share
    windows = Batch(tokens(), mask_NT)

    log_p_NTV = dense(input_ids=tokens()).logits.log_softmax(-1)
    log_q_NTV = model(input_ids=tokens()).logits.log_softmax(-1)
    nats_NTV = log_p_NTV.exp() * (log_p_NTV - log_q_NTV)
    nats_P = nats_NTV.sum(-1).flatten()
    predicted_P = windows.predicted_P
    if predicted_P is not None:  # None if the mask is true for all tokens
        nats_P = nats_P[predicted_P]
    expected = nats_P.mean()

    student = Student(Resident(model), Teacher(Resident(dense)), []).train()
    loss = student(windows.tokens_NT, windows.mask_NT)["loss"]
    torch.testing.assert_close(loss, expected)
    weight = model.model.layers[1].self_attn.q_proj.weight
    [gradient] = torch.autograd.grad(loss, weight, retain_graph=True)
    [expected_gradient] = torch.autograd.grad(expected, weight, retain_graph=True)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)
    for parameter in dense.parameters():
        assert parameter.grad is None

    # The mask is false for the whole last window, so with one window per batch, the last batch
    # contains no predictions that count.
    tokens_NT = torch.cat([tokens(), tokens()[:1]])
    mask_NT = torch.cat([mask_NT, torch.zeros_like(mask_NT[:1])])
    windows = Batch(tokens_NT, mask_NT)
    for batch_size in (1, 4):
        nats = mean_divergence(Resident(model), Teacher(Resident(dense)), windows, batch_size)
        assert nats == pytest.approx(expected.item())
