"""What the model expects, against a loop."""

import torch

from flap.models import Resident
from flap.vocabulary.expected import expected
from tests.cases import tiny_model, tokens


@torch.no_grad()
def test_it_is_the_mean_of_the_probabilities() -> None:
    model, windows = tiny_model("llama-gqa"), [tokens(9, 16), tokens(4, 8)]
    logits = [model(input_ids=tokens_NT).logits.double().flatten(0, 1) for tokens_NT in windows]
    share_V = torch.cat(logits).softmax(-1).mean(dim=0)
    torch.testing.assert_close(expected(Resident(model), windows), share_V, rtol=1e-4, atol=0)


def test_windows_end_with_the_context() -> None:
    model, tokens_NT = Resident(tiny_model("llama-gqa", max_position_embeddings=8)), tokens(4, 12)
    assert torch.equal(expected(model, [tokens_NT]), expected(model, [tokens_NT[:, :8]]))
