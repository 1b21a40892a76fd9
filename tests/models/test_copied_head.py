"""If the LM head in a GGUF file is a copy of the embedding, flap ties the two matrices.

The LM head and the embedding may have different quantised types in the file.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import PreTrainedModel

from flap.config import ModelConfig
from flap.models import CheckpointSource, count_parameters, find_model
from flap.pipeline import run
from flap.runs.dry_run import dry_run
from tests.cases import tiny_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB

WIDTH = 256  # hidden size, which is a multiple of the block size of every quantised type
KEYS = {"rope.dimension_count": 8, "rope.freq_base": 10000.0}
Write = Callable[..., Path]


def untied() -> PreTrainedModel:
    return tiny_model("llama-mha", vocab_size=VOCAB, hidden_size=WIDTH)


def rounded(matrix: np.ndarray, quantisation: str) -> torch.Tensor:
    """Return the matrix with the rounding errors of a quantised type."""
    kind = GGMLQuantizationType[quantisation]
    return torch.tensor(gguf.dequantize(gguf.quantize(matrix, kind), kind))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a GGUF file with given types of the embedding and the LM head.

    The function takes the names of the types in GGUF, such as "Q8_0". Its argument `noise` says how
    much the head differs from the embedding before both are quantised, relative to the standard
    deviation of the embedding.
    """

    def write_file(embedding: str, head: str, noise: float = 0.0) -> Path:
        model = untied()
        vectors = model.get_input_embeddings().weight.data
        model.lm_head.weight.data = vectors + noise * vectors.std() * torch.randn_like(vectors)
        last = len(list(model.named_parameters())) - 1
        types = {0: embedding, last: head}

        def encode(seed: int, matrix: np.ndarray) -> dict[str, Any]:
            if seed not in types:
                return {"tensor": matrix}
            kind = GGMLQuantizationType[types[seed]]
            return {"tensor": gguf.quantize(matrix, kind), "raw_dtype": kind}

        return write_gguf(tmp_path / "mine.gguf", "llama", model, KEYS, encode)

    return write_file


def found(path: Path, tie: bool = True) -> CheckpointSource:
    config = ModelConfig("tiny", str(path), device="cpu", tie_copied_head=tie)
    return find_model(config, path.parent / "cache", trust_remote_code=False)


@pytest.mark.parametrize(
    ("embedding", "head", "precise"),
    [("Q5_0", "Q8_0", "Q8_0"), ("Q8_0", "Q4_1", "Q8_0"), ("Q4_0", "F16", "F16"), ("Q8_0",) * 3],
)
def test_both_become_the_more_precise_one(
    embedding: str, head: str, precise: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(embedding, head)
    with caplog.at_level(logging.INFO):
        source = found(path)
    model = source.open().model
    embeddings = untied().get_input_embeddings().weight
    expected = rounded(embeddings.detach().numpy(), precise)
    torch.testing.assert_close(model.get_output_embeddings().weight.data, expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert source.config.tie_word_embeddings
    assert source.origin.endswith(", with head and embedding tied")
    [line] = [text for text in caplog.messages if "copy" in text]
    assert f"its head ({head}) is a copy of its embedding ({embedding})" in line
    assert "model.tie_copied_head=false" in line


@pytest.mark.parametrize(
    ("embedding", "head", "noise"),
    [
        ("Q5_0", "Q8_0", 0.2),
        ("Q8_0", "Q8_0", 0.05),
        # With so much noise, the head has much larger values than the embedding.
        ("TQ1_0", "Q8_0", 10.0),
    ],
)
def test_a_head_of_its_own_stays(embedding: str, head: str, noise: float, write: Write) -> None:
    source = found(write(embedding, head, noise))
    model = source.open().model
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not source.config.tie_word_embeddings
    assert "tied" not in source.origin


def test_a_copy_is_kept_apart_on_request_and_shares_no_result(write: Write) -> None:
    path = write("Q5_0", "Q8_0")
    tied = found(path)
    apart = found(path, tie=False)
    assert not apart.config.tie_word_embeddings
    assert tied.fingerprint != apart.fingerprint
    matrix = VOCAB * WIDTH
    assert count_parameters(apart.open().model) == count_parameters(tied.open().model) + matrix


def test_a_run_counts_the_matrix_once_and_saves_a_tied_checkpoint(
    write: Write, tmp_path: Path
) -> None:
    text = tmp_path / "fox.txt"
    text.write_text((TEXT[0] + " ") * 160)
    path = write("Q5_0", "Q8_0")
    fixed = ["model.device=cpu", "eval=none", f"cache_dir={tmp_path / 'cache'}", "ratio=0.3"]
    config = composed(*tiny(path, text)[:5], *fixed)
    planned = list(dry_run(config).lines())
    report = run(config, tmp_path / "run")

    before = count_parameters(found(path).open().model)
    assert report.parameters["total_before"] == before
    assert planned[0].startswith(f"parameters: {before:,} before")
    checkpoint = tmp_path / "run" / "checkpoint"
    assert json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
