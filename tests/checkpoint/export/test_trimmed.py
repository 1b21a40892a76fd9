"""With a trimmed vocabulary, llama.cpp gives the same tokens and predictions as transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from flap.checkpoint.export.gguf.export import export_gguf
from flap.checkpoint.load import load
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.llama_cpp import llama_cpp
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import KINDS, TEXT, TRICKY, VOCAB


def trimmed(kind: str, folder: Path) -> Path:
    """Return the checkpoint of a run that removes tokens from the vocabulary, but nothing else."""
    tokenizer = KINDS[kind]()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    tiny_model("llama-gqa", vocab_size=VOCAB, **ids).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    (folder / "text.txt").write_text((TEXT[0] + " ") * 60)
    options = ("ratio=0", "vocabulary=trim", "vocabulary.coverage=1", "model.device=cpu")
    run(composed(*tiny(folder / "dense", folder / "text.txt"), *options), folder)
    return folder / "checkpoint"


def expected(checkpoint: Path, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return load(checkpoint)(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "llama-spm", "gemma"])
def test_llama_cpp_has_its_tokens_and_its_predictions(kind: str, tmp_path: Path) -> None:
    checkpoint = trimmed(kind, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer(TEXT[0]).input_ids[:12]
    plain = tokenizer.get_vocab()["e"]
    found = llama_cpp(export_gguf(checkpoint, "f32"), tokens=tokens, plain=plain, texts=TRICKY)
    assert found["ids"] == [tokenizer(text).input_ids for text in TRICKY]
    assert (torch.tensor(found["logprobs"]) - expected(checkpoint, tokens)).abs().max() <= 1e-3
