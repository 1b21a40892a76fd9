"""The windows: each once, those that are held out first; texts that are too short."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.data.read_windows import Wanted, read_windows
from flap.method.recovery.base import HELD_OUT_WINDOWS, Recovery
from flap.method.recovery.distillation import training_windows
from tests.method.recovery.small import BATCH, SEQ_LEN

STEPS = 19  # of the 187 windows that the text has


@pytest.fixture
def recovery(text_file: Path) -> Recovery:
    return Recovery(str(text_file), STEPS * BATCH * SEQ_LEN + 1, 1e-3, seq_len=SEQ_LEN, batch_size=BATCH)


def test_each_window_is_there_once(recovery: Recovery, tokenizer: PreTrainedTokenizerFast) -> None:
    wanted = Wanted(recovery.windows + recovery.held_out, SEQ_LEN, 0, "auto")
    windows = read_windows("recover", recovery.dataset, tokenizer, wanted, 128)
    tokens_NT = training_windows(recovery, windows)
    assert tokens_NT.shape == (HELD_OUT_WINDOWS + STEPS * BATCH, SEQ_LEN)
    assert len({tuple(row) for row in tokens_NT.tolist()}) == len(tokens_NT)
    other = read_windows("recover", recovery.dataset, tokenizer, wanted._replace(seed=1), 128)
    assert other.tokens_NT.tolist() != tokens_NT.tolist() and other.key != windows.key
