"""Two processes that share each batch train as one does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flap.config import ModelConfig
from flap.data.counted import marked
from flap.method.recovery.distillation import distil
from flap.models import Resident, find_model
from flap.storage import ranks
from tests.helpers.ranks import in_ranks
from tests.method.recovery.small import FULL, SEQ_LEN, compressed, windows

SHORT = replace(FULL, tokens=4 * 8 * SEQ_LEN, held_out=7)  # which two processes do not share evenly


def train(model_dir: Path, folder: Path) -> None:
    """Train in this process, or as one of several; leaves what it found and the weights in the folder."""
    source = find_model(
        ModelConfig("tiny", str(model_dir), device="cpu"), folder / "cache", trust_remote_code=False
    )
    model = compressed()
    tokens_NT = windows(SHORT)
    tokens_NT[::3, 1:] = marked(
        tokens_NT[::3, 1:], torch.tensor(False)
    )  # nor do they share what counts
    found = distil(SHORT, Resident(model), source.open(), tokens_NT, folder / "work", seed=0)
    own = folder / str(ranks.rank())
    own.mkdir(parents=True)
    (own / "found.json").write_text(json.dumps(found))
    save_file(
        {name: one.contiguous() for name, one in model.named_parameters()},
        own / "weights.safetensors",
    )


@pytest.mark.long
def test_they_train_as_one_process_does(model_dir: Path, tmp_path: Path) -> None:
    assert in_ranks(1, train, model_dir, tmp_path / "one") == [0]
    assert in_ranks(2, train, model_dir, tmp_path / "two") == [0, 0]
    folders = [tmp_path / "one" / "0", tmp_path / "two" / "0", tmp_path / "two" / "1"]
    expected, *found = (json.loads((folder / "found.json").read_text()) for folder in folders)
    weights, *others = (load_file(folder / "weights.safetensors") for folder in folders)
    assert found[0] == found[1] and found[0]["tokens"] == SHORT.tokens
    for one, other in zip(found[0]["nats_by_tokens"], expected["nats_by_tokens"], strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert found[0]["nats_after"] < 0.99 * found[0]["nats_before"]
    for other in others:
        for name, one in weights.items():
            assert torch.dist(one, other[name]) <= 2e-4 * one.norm(), (
                name
            )  # where gradients are 0, rounding moves them
