"""The windows: each once, those that are held out first; texts that are too short."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.recovery import Recovery, recovery_windows
from flap.recovery.base import HELD_OUT_WINDOWS
from tests.recovery.small import BATCH, SEQ_LEN

STEPS = 19  # of the 187 windows that the text has


@pytest.fixture
def recovery(text_file: Path) -> Recovery:
    return Recovery(str(text_file), STEPS * BATCH * SEQ_LEN + 1, 1e-3, seq_len=SEQ_LEN, batch_size=BATCH)


def test_each_window_is_there_once(recovery: Recovery, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = recovery_windows(recovery, tokenizer, 128, "auto", 0)
    [tokens_NT] = windows.by_length
    assert tokens_NT.shape == (HELD_OUT_WINDOWS + STEPS * BATCH, SEQ_LEN)
    assert len({tuple(row) for row in tokens_NT.tolist()}) == len(tokens_NT)
    other = recovery_windows(recovery, tokenizer, 128, "auto", 1)
    assert other.by_length[0].tolist() != tokens_NT.tolist() and other.key != windows.key


def test_a_mixture_is_in_proportion_where_it_is_held_out(
    recovery: Recovery, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for word in ("cat", "dog"):
        (tmp_path / f"{word}.txt").write_text(f"{word} " * 3000)
    texts = {str(tmp_path / "cat.txt"): 1, str(tmp_path / "dog.txt"): 3}
    [tokens_NT] = recovery_windows(replace(recovery, dataset=texts), tokenizer, 128, "auto", 0).by_length
    dogs = (tokens_NT[:, 0] == tokenizer.vocab["dog"]).float()
    assert dogs[:HELD_OUT_WINDOWS].mean() == pytest.approx(0.75, abs=0.05)
    assert dogs[HELD_OUT_WINDOWS:].mean() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tokens": 20 * 128}, "recover.tokens=2560: takes 192 windows of 16 tokens, .* of a text that has 187; lower"),
        ({"seq_len": 129, "tokens": 8 * 129}, "recover.seq_len=129: the model's context ends at 128 tokens"),
        ({"dataset": "wikitext3"}, "recover.dataset=wikitext3: unknown dataset; expected boolq-passages, .* file"),
        ({"dataset": 3}, "recover.dataset=3: expected a text"),
    ],
)
def test_texts_that_are_refused(
    changes: dict[str, object], line: str, recovery: Recovery, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=line):
        recovery_windows(replace(recovery, **changes), tokenizer, 128, "auto", 0)
