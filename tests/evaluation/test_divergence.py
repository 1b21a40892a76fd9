"""Divergences of the pruned from the dense model agree with a separate computation in float64.

The divergences do not depend on where the weights are (in memory or on disk). A complete run
reports the same divergences as a measurement of the checkpoint that the run has saved.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.evaluation import Divergence, Measurement, Task
from flap.evaluation.divergence import compare, reference_states
from flap.models import PlacedModel, Resident
from flap.pipeline import run
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.helpers.runs import composed, tiny

NAMES = ("kl", "agreement", "top5_agreement", "acceptance")
WINDOWS = tokens(5, 17)
BATCHES = WINDOWS.split(2)


def measured(dense: PlacedModel, pruned: PlacedModel) -> dict[str, list[float]]:
    return compare(pruned, reference_states(dense, BATCHES), BATCHES)


def pair(architecture: str = "llama-gqa") -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return two models that differ in one layer, but have the same LM head."""
    other = tiny_model(architecture)
    other.model.layers[2].mlp.down_proj.weight.data *= 0.3
    return tiny_model(architecture), other


def shared_ranks(p_TV: Tensor, q_TV: Tensor, k: int) -> float:
    """Return the share of p's k most likely next tokens that are also among q's k most likely ones.

    At each position of a text, p and q are distributions over the vocabulary. The share is the mean
    over all positions.
    """
    likeliest_p = p_TV.argsort(dim=-1, descending=True)[:, :k].tolist()
    likeliest_q = q_TV.argsort(dim=-1, descending=True)[:, :k].tolist()
    shares = []
    for tokens_of_p, tokens_of_q in zip(likeliest_p, likeliest_q, strict=True):
        common = set(tokens_of_p) & set(tokens_of_q)
        shares.append(len(common) / k)
    return sum(shares) / len(shares)


@torch.no_grad()
def by_hand(dense: PreTrainedModel, pruned: PreTrainedModel) -> dict[str, list[float]]:
    """Compute the divergences of each window in float64."""
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    for window_NT in WINDOWS.split(1):
        p_TV = dense(input_ids=window_NT).logits[0, :-1].double().softmax(-1)
        q_TV = pruned(input_ids=window_NT).logits[0, :-1].double().softmax(-1)

        nats_TV = p_TV * (p_TV / q_TV).log()
        values["kl"].append(nats_TV.sum(-1).mean().item())
        both_TV = torch.minimum(p_TV, q_TV)
        values["acceptance"].append(both_TV.sum(-1).mean().item())
        values["agreement"].append(shared_ranks(p_TV, q_TV, 1))
        values["top5_agreement"].append(shared_ranks(p_TV, q_TV, 5))
    return values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_float64_loop(architecture: str) -> None:
    dense, pruned = pair(architecture)
    found = measured(Resident(dense), Resident(pruned))
    expected = by_hand(dense, pruned)
    assert found.keys() == expected.keys()
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    assert min(found["kl"]) > 1e-3
    assert 0 < min(found["agreement"]) < 1


def test_any_device_finds_the_same(device: torch.device) -> None:
    dense, pruned = pair()
    expected = measured(Resident(dense), Resident(pruned))
    found = measured(Resident(dense.to(device)), Resident(pruned.to(device)))
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    assert measured(model, model) == {
        "kl": [0.0] * 5,
        "agreement": [1.0] * 5,
        "top5_agreement": [1.0] * 5,
        "acceptance": [1.0] * 5,
    }


def test_predictions_that_are_not_finite_are_no_small_divergence() -> None:
    broken = tiny_model("llama-gqa")
    broken.model.norm.weight.data[:] = float("nan")
    found = measured(Resident(tiny_model("llama-gqa")), Resident(broken))
    for kl in found["kl"]:
        assert math.isnan(kl)


@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_every_placement_keeps_the_same_states(
    placement: str, model_dir: Path, tmp_path: Path
) -> None:
    _, pruned = pair()
    dense = placed_at(placement, model_dir, tmp_path / "work")
    found = reference_states(dense, BATCHES)
    expected = reference_states(placed_at("device", model_dir), BATCHES)
    for states, expected_states in zip(found, expected, strict=True):
        assert torch.equal(states, expected_states)
    for path in (tmp_path / "work").rglob("*"):
        assert not path.is_file()

    numbers = compare(Resident(pruned), found, BATCHES)
    assert numbers == compare(Resident(pruned), expected, BATCHES)


def measure_checkpoints(task: Task, dense_dir: Path, pruned_dir: Path) -> Measurement:
    assert task.reference is not None
    states = task.reference(placed_at("device", dense_dir))
    return task.run(placed_at("device", pruned_dir), states)


def names_in_report(*lengths: int) -> set[str]:
    """Return the names that divergences and their standard errors have in a report.

    lengths: the window lengths with which the divergences are measured.
    """
    names = set()
    for length in lengths:
        for name in NAMES:
            names.add(f"words.txt/{name}@{length}")
            names.add(f"words.txt/{name}@{length}_stderr")
    return names


def test_a_run_compares_what_is_pruned_with_what_was_before(
    model_dir: Path, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    options = [
        "eval=[perplexity,divergence]",
        f"eval.divergence.datasets=[{text_file}]",
        "eval.divergence.seq_len=[8,16]",
        "eval.divergence.max_tokens=160",
        "eval.perplexity.max_tokens=160",
        "ratio=0.4",
    ]
    report = run(composed(*tiny(model_dir, text_file), *options), tmp_path)

    # A divergence compares the pruned model with the dense model, so only the report of the pruned
    # model contains divergences.
    of_text = {"words.txt/perplexity@16", "words.txt/bits_per_byte@16"}
    assert set(report.evaluation["dense"]) == of_text
    assert set(report.difference_stderr) == of_text
    numbers = report.evaluation["pruned"]
    assert set(numbers) == of_text | names_in_report(8, 16)
    for name in ("words.txt/kl@8", "words.txt/kl@16"):
        assert 0 < numbers[f"{name}_stderr"] < numbers[name]
    assert report.domains == {
        "words.txt/perplexity@16": "calibration",
        "words.txt/divergence@8": "calibration",
        "words.txt/divergence@16": "calibration",
    }

    # The saved checkpoint has the same divergence from the dense model as the model in the run.
    [task] = Divergence([str(text_file)], seq_len=16, max_tokens=160).prepare(tokenizer, 128)
    measurement = measure_checkpoints(task, model_dir, tmp_path / "checkpoint")
    assert measurement.numbers.items() <= numbers.items()
    assert measurement.better == {
        "words.txt/kl@16": "lower",
        "words.txt/agreement@16": "higher",
        "words.txt/top5_agreement@16": "higher",
        "words.txt/acceptance@16": "higher",
    }
