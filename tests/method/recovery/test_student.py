"""The loss: the divergence by its formula, by chunks of positions, and its gradient."""

import pytest
import torch

from flap.data.counted import counted_predictions, marked
from flap.method.recovery import student
from flap.method.recovery.student import Student, mean_divergence
from flap.models import Resident
from tests.cases import VOCAB, tiny_model, tokens
from tests.method.recovery.small import compressed


def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model = compressed()
        loss = Student(Resident(model), Resident(tiny_model("llama-gqa")), []).train()(tokens())[
            "loss"
        ]
        loss.backward()
        return loss.detach(), model.model.layers[0].mlp.down_proj.weight.grad

    whole = loss_and_gradient()
    monkeypatch.setattr(student, "LOGITS_BYTES", 4 * VOCAB * 11)
    for one, other in zip(whole, loss_and_gradient(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_mean_weighs_windows_equally_whatever_the_batches() -> None:
    models = Resident(compressed()), Resident(tiny_model("llama-gqa"))
    one_by_one = [mean_divergence(*models, window_NT, 1) for window_NT in tokens().split(1)]
    assert mean_divergence(*models, tokens(), 4) == pytest.approx(
        sum(one_by_one) / len(one_by_one), rel=1e-5
    )


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_only_predictions_of_tokens_that_count_are_learnt(share: float) -> None:
    """By the formula, and its gradient."""
    model = compressed()
    dense = tiny_model("llama-gqa")
    counted = torch.rand(tokens().shape, generator=torch.Generator().manual_seed(0)) < share
    windows = marked(tokens(), counted)
    weight = model.model.layers[1].self_attn.q_proj.weight
    log_p, log_q = (
        one(input_ids=tokens()).logits.log_softmax(-1).flatten(0, 1) for one in (dense, model)
    )
    expected = (
        (log_p.exp() * (log_p - log_q)).sum(-1)[counted_predictions(windows)].mean()
    )  # [None]: of all
    student = Student(Resident(model), Resident(dense), []).train()
    loss = student(windows)["loss"]
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (loss, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in dense.parameters())
    windows = torch.cat([windows, -1 - tokens()[:1]])  # a batch in which nothing counts
    for batch_size in (1, 4):
        assert mean_divergence(
            Resident(model), Resident(dense), windows, batch_size
        ) == pytest.approx(expected.item())
