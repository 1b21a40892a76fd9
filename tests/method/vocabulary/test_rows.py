"""Rows leave a model of any family, at any placement: what stays is equal to the bit."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from flap.method.vocabulary.rows import cut_rows, named_ids
from flap.models import PLACEMENTS, Resident
from tests.cases import random_model, tiny_model
from tests.helpers.placed import placed_at
from tests.models.families.every import EVERY

VOCAB = 96
KEPT = torch.tensor(
    [0, 2, 5, *range(20, 80), 1, *range(92, 96)]
)  # in another order; the last ones stand for images
TEXT = len(KEPT) - 4


@torch.no_grad()
def logits(model: PreTrainedModel, tokens_NT: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens_NT).logits


def of_a_row(model: PreTrainedModel) -> int:
    """The parameters of a token: its rows of the embedding, and of a head of its own."""
    ends = {
        id(one): one
        for end in ("input", "output")
        for one in getattr(model, f"get_{end}_embeddings")().parameters()
    }
    return sum(one[0].numel() for one in ends.values())


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.__name__)
def test_what_stays_is_equal_to_the_bit(family: type) -> None:
    model = random_model(list(family.configs.values())[-1])
    before = sum(p.numel() for p in model.parameters())
    rows = model.get_input_embeddings().weight.shape[0]
    of_row = of_a_row(model)
    new_NT = torch.randint(0, TEXT, (2, 12))
    expected = logits(model, KEPT[new_NT])[..., KEPT]
    cut_rows(Resident(model), KEPT)
    assert torch.equal(logits(model, new_NT), expected)
    assert sum(p.numel() for p in model.parameters()) == before - of_row * (rows - len(KEPT))
    assert model.config.get_text_config().vocab_size == len(KEPT)


def test_ids_in_the_configs_follow() -> None:
    model = tiny_model("llama-gqa", bos_token_id=1, eos_token_id=[2, 5, 90], pad_token_id=0)
    model.generation_config.suppress_tokens = [3, 25]
    cut_rows(Resident(model), KEPT)
    assert (
        model.config.bos_token_id == 63
        and model.config.eos_token_id == [1, 2]
        and model.config.pad_token_id == 0
    )
    assert (
        model.generation_config.suppress_tokens == [8]
        and model.get_input_embeddings().padding_idx == 0
    )


def test_ids_that_configs_name() -> None:
    model = tiny_model("llama-gqa", bos_token_id=1, eos_token_id=[2, 5, 90], pad_token_id=None)
    model.generation_config.suppress_tokens, model.generation_config.max_new_tokens = [3, 25], 40
    assert named_ids(model) == {1, 2, 5, 90}


def test_words_follow_and_numbers_of_tokens_stay() -> None:
    model = tiny_model("llama-gqa")
    given = model.generation_config
    given.bad_words_ids = [[5, 25], [3, 25]]
    given.sequence_bias = [[[25], 1.5], [[3], 2.5]]
    given.max_new_tokens = 25
    given.num_assistant_tokens = 20
    cut_rows(Resident(model), KEPT)
    assert given.bad_words_ids == [[2, 8]] and given.sequence_bias == [[[8], 1.5]]
    assert given.max_new_tokens == 25 and given.num_assistant_tokens == 20


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement(placement: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    placed = placed_at(placement, tmp_path / "model", tmp_path / "work")
    new_NT = torch.randint(0, len(KEPT), (2, 12))
    cut_rows(placed, KEPT)
    assert torch.equal(placed.logits(new_NT), logits(model, KEPT[new_NT])[..., KEPT])
    placed.write(tmp_path / "written")
    again = placed_at("device", tmp_path / "written")
    assert torch.equal(again.logits(new_NT), placed.logits(new_NT))
