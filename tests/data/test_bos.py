"""Windows of tokens begin with the BOS token if the tokenizer adds this token to texts."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from flap.data import Pool, Text, evaluation_windows, read_text, uses_bos

FIELD = "calibration.bos"


@pytest.fixture(scope="module")
def adding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds BOS before a text, as the tokenizers of LLaMA and Gemma do."""
    adding = deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return adding


@pytest.fixture(scope="module")
def text(text_file: Path) -> Text:
    return read_text(str(text_file), "calibration", "calibration.dataset")


def test_auto_is_what_the_tokenizer_does(
    tokenizer: PreTrainedTokenizerFast, adding: PreTrainedTokenizerFast
) -> None:
    assert [uses_bos(one, "auto", FIELD) for one in (tokenizer, adding)] == [False, True]
    assert [uses_bos(adding, bos, FIELD) for bos in ("true", "True", "False")] == [
        True,
        True,
        False,
    ]


def test_every_window_begins_with_it_and_holds_one_token_less(
    adding: PreTrainedTokenizerFast, text: Text
) -> None:
    ids = torch.tensor(adding(text.text, add_special_tokens=False).input_ids)
    windows = evaluation_windows(text, adding, 16, None, True, FIELD)
    assert windows.shape == (3000 // 15, 16) and (windows[:, 0] == 1).all()
    assert torch.equal(windows[:, 1:].flatten(), ids)
    drawn = Pool(text, adding, bos=True).draw(20, 16, seed=0).tokens_NT
    assert drawn.shape == (20, 16) and (drawn[:, 0] == 1).all()


def test_without_it_the_first_window_begins_as_the_tokenizer_says(
    adding: PreTrainedTokenizerFast, text: Text
) -> None:
    windows = evaluation_windows(text, adding, 16, None, False, FIELD)
    assert windows[0, 0] == 1 and not (windows[1:] == 1).any()


@pytest.mark.parametrize("bos", [False, True])
def test_a_text_that_begins_with_it_has_it_once(adding: PreTrainedTokenizerFast, bos: bool) -> None:
    # Each document begins with BOS, like the texts that many chat templates make.
    documents = [f"<s>{' '.join(f'w{i}' for i in range(n, n + 20))}" for n in range(3)]
    windows = Pool(Text.joined("t", documents, ""), adding, bos).cut(20).tokens_NT
    assert (windows[0] == 1).sum() == 1 and not (
        (windows[:, 1:] == 1) & (windows[:, :-1] == 1)
    ).any()


def test_a_tokenizer_without_such_a_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    without = deepcopy(tokenizer)
    without.bos_token = None
    assert not uses_bos(without, "auto", FIELD)
    with pytest.raises(
        ValueError,
        match=r"^calibration\.bos=true: the tokenizer has no beginning-of-sequence token",
    ):
        uses_bos(without, "true", FIELD)
