"""A model of any family loses the rows of removed tokens in the embedding and the LM head.

This holds whether the weights are in memory or on disk. All other rows stay unchanged.
"""

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
# The ids of the kept tokens, in a new order. The last four tokens are placeholders for images.
KEPT = torch.tensor([0, 2, 5, *range(20, 80), 1, *range(92, 96)])
TEXT = len(KEPT) - 4


@torch.no_grad()
def logits(model: PreTrainedModel, tokens_NT: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens_NT).logits


def parameters_of_a_token(model: PreTrainedModel) -> int:
    """Return the number of parameters in the rows of one token in the embedding and the LM head.

    If the two matrices are tied, the row that they share counts once.
    """
    parameters = {}
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in end.parameters():
            parameters[id(parameter)] = parameter[0].numel()
    return sum(parameters.values())


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.__name__)
def test_logits_of_the_kept_tokens_are_equal_to_the_bit(family: type) -> None:
    model = random_model(list(family.configs.values())[-1])
    before = sum(parameter.numel() for parameter in model.parameters())
    rows = model.get_input_embeddings().weight.shape[0]
    removed = parameters_of_a_token(model) * (rows - len(KEPT))
    new_NT = torch.randint(0, TEXT, (2, 12))
    expected_NTV = logits(model, KEPT[new_NT])[..., KEPT]

    cut_rows(Resident(model), KEPT)
    assert torch.equal(logits(model, new_NT), expected_NTV)
    assert sum(parameter.numel() for parameter in model.parameters()) == before - removed
    assert model.config.get_text_config().vocab_size == len(KEPT)


def test_configs_get_the_new_ids() -> None:
    model = tiny_model("llama-gqa", bos_token_id=1, eos_token_id=[2, 5, 90], pad_token_id=0)
    model.generation_config.suppress_tokens = [3, 25]
    cut_rows(Resident(model), KEPT)
    assert model.config.bos_token_id == 63
    assert model.config.eos_token_id == [1, 2]
    assert model.config.pad_token_id == 0
    assert model.generation_config.suppress_tokens == [8]
    assert model.get_input_embeddings().padding_idx == 0


def test_ids_that_configs_name() -> None:
    model = tiny_model("llama-gqa", bos_token_id=1, eos_token_id=[2, 5, 90], pad_token_id=None)
    model.generation_config.suppress_tokens = [3, 25]
    model.generation_config.max_new_tokens = 40
    assert named_ids(model) == {1, 2, 5, 90}


def test_words_get_the_new_ids_and_numbers_of_tokens_stay() -> None:
    model = tiny_model("llama-gqa")
    config = model.generation_config
    config.bad_words_ids = [[5, 25], [3, 25]]
    config.sequence_bias = [[[25], 1.5], [[3], 2.5]]
    config.max_new_tokens = 25
    config.num_assistant_tokens = 20
    cut_rows(Resident(model), KEPT)
    assert config.bad_words_ids == [[2, 8]]
    assert config.sequence_bias == [[[8], 1.5]]
    assert config.max_new_tokens == 25
    assert config.num_assistant_tokens == 20


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement(placement: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    placed = placed_at(placement, tmp_path / "model", tmp_path / "work")
    new_NT = torch.randint(0, len(KEPT), (2, 12))
    expected_NTV = logits(model, KEPT[new_NT])[..., KEPT]

    cut_rows(placed, KEPT)
    assert torch.equal(placed.logits(new_NT), expected_NTV)
    placed.write(tmp_path / "written")
    again = placed_at("device", tmp_path / "written")
    assert torch.equal(again.logits(new_NT), placed.logits(new_NT))
