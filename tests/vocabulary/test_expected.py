"""What the model expects, against a loop; of tokens that nobody counted, the likely one stays."""

import pytest
import torch

from flap.models import Resident
from flap.vocabulary.choice import worth
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


def test_counts_and_expectations_add_up() -> None:
    counts_V, share_V = torch.tensor([3.0, 0.0, 1.0, 0.0]), torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert worth(counts_V, share_V).tolist() == pytest.approx([3.4, 1.6, 1.8, 1.2])
