"""The mean probabilities that a model predicts for tokens agree with a direct computation."""

import torch

from flap.method.vocabulary.expected import expected
from flap.models import Resident
from tests.cases import tiny_model, tokens


@torch.no_grad()
def test_it_is_the_mean_of_the_probabilities_over_texts_by_weight() -> None:
    model = tiny_model("llama-gqa")
    windows = [tokens(9, 16), tokens(4, 8)]
    shares = []
    for tokens_NT in windows:
        p_NTV = model(input_ids=tokens_NT).logits.double().softmax(-1)
        shares.append(p_NTV.flatten(0, 1).mean(dim=0))
    first_V, second_V = shares

    both_V = expected(Resident(model), windows, [6.0, 2.0])
    torch.testing.assert_close(both_V, 0.75 * first_V + 0.25 * second_V, rtol=1e-4, atol=0)
    only_V = expected(Resident(model), windows[1:], [2.0])
    torch.testing.assert_close(only_V, second_V, rtol=1e-4, atol=0)


def test_windows_end_with_the_context() -> None:
    model = Resident(tiny_model("llama-gqa", max_position_embeddings=8))
    tokens_NT = tokens(4, 12)
    cut_V = expected(model, [tokens_NT[:, :8]], [1.0])
    assert torch.equal(expected(model, [tokens_NT], [1.0]), cut_V)
