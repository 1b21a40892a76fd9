from pathlib import Path

import pytest

from tests.cases import tiny_model
from tests.helpers.tokenizers import TEXT, VOCAB, smollm


@pytest.fixture(scope="session")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny LLaMA and a byte-level tokenizer in a folder, and return this folder."""
    path = tmp_path_factory.mktemp("model") / "tiny-words"
    tokenizer = smollm()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = tiny_model("llama-gqa", vocab_size=VOCAB, pad_token_id=tokenizer.eos_token_id, **ids)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text that contains only a few of the tokens of the tokenizer in `words_dir`."""
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text((TEXT[0] + " ") * 160)
    return path


@pytest.fixture(scope="session")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text with some tokens that the text of `words_file` does not contain."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text(" ".join(TEXT) * 30)
    return path
