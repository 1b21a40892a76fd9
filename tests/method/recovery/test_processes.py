"""Two processes that divide each batch between them train like one process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flap.config import ModelConfig
from flap.method.recovery.distillation import distil
from flap.method.recovery.teacher import Teacher
from flap.models import Resident, find_model
from flap.runtime import ranks
from tests.helpers.ranks import in_ranks
from tests.method.recovery.small import FULL, SEQ_LEN, compressed, windows

# Seven held-out windows, because two processes cannot divide them evenly.
SHORT = replace(FULL, tokens=4 * 8 * SEQ_LEN, held_out=7)


def train(model_dir: Path, folder: Path) -> None:
    """Train a tiny pruned model in this process, which may be one of several.

    Each process writes the summary of the training and the weights to a subfolder of `folder`,
    which is named after the rank of the process.
    """
    config = ModelConfig("tiny", str(model_dir), device="cpu")
    source = find_model(config, folder / "cache", trust_remote_code=False)
    model = compressed()
    batch = windows(SHORT)
    # The tokens for which the mask is true cannot be divided evenly between two processes, either.
    batch.mask_NT[::3, 1:] = False
    teacher = Teacher(source.open())
    summary = distil(SHORT, Resident(model), teacher, batch, folder / "work", seed=0)

    results = folder / str(ranks.rank())
    results.mkdir(parents=True)
    (results / "summary.json").write_text(json.dumps(summary))
    weights = {name: weight.contiguous() for name, weight in model.named_parameters()}
    save_file(weights, results / "weights.safetensors")


@pytest.mark.long
def test_they_train_as_one_process_does(model_dir: Path, tmp_path: Path) -> None:
    assert in_ranks(1, train, model_dir, tmp_path / "one") == [0]
    assert in_ranks(2, train, model_dir, tmp_path / "two") == [0, 0]
    single = tmp_path / "one" / "0"
    first = tmp_path / "two" / "0"
    second = tmp_path / "two" / "1"

    expected, summary, summary_of_second = (
        json.loads((folder / "summary.json").read_text()) for folder in (single, first, second)
    )
    assert summary == summary_of_second
    assert summary["tokens"] == SHORT.tokens
    assert summary["nats_after"] < 0.99 * summary["nats_before"]
    for nats, expected_nats in zip(
        summary["nats_by_tokens"], expected["nats_by_tokens"], strict=True
    ):
        assert nats == pytest.approx(expected_nats, abs=1e-6)

    # Two processes add up gradients in a different order than one process does. The different
    # rounding changes gradients that are nearly 0, so the weights are not identical bit for bit.
    weights = load_file(single / "weights.safetensors")
    for folder in (first, second):
        others = load_file(folder / "weights.safetensors")
        for name, weight in weights.items():
            assert torch.dist(weight, others[name]) <= 2e-4 * weight.norm(), name
