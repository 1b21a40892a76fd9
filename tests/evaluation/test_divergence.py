"""The divergence of predictions against a float64 loop, at every placement, and beside the other numbers of a run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.evaluation import Divergence
from flap.evaluation.divergence import compare, reference_states
from flap.models import PlacedModel, Resident
from flap.pipeline import run
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.helpers.runs import composed, tiny

NAMES = ("kl", "agreement", "top5_agreement", "acceptance")
WINDOWS = tokens(5, 17)
BATCHES = WINDOWS.split(2)


def found(
    dense: PlacedModel, pruned: PlacedModel, batches: tuple[Tensor, ...] = BATCHES
) -> dict[str, list[float]]:
    return compare(pruned, reference_states(dense, batches), batches)


def pair(architecture: str = "llama-gqa") -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model, and another one that differs in a layer but not in its head."""
    other = tiny_model(architecture)
    other.model.layers[2].mlp.down_proj.weight.data *= 0.3
    return tiny_model(architecture), other


@torch.no_grad()
def by_hand(dense: PreTrainedModel, pruned: PreTrainedModel) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    for window_T in WINDOWS:
        dense_TV, pruned_TV = (
            one(input_ids=window_T[None]).logits[0, :-1].double() for one in (dense, pruned)
        )
        p_TV = dense_TV.softmax(-1)
        q_TV = pruned_TV.softmax(-1)
        values["kl"].append((p_TV * (p_TV / q_TV).log()).sum(-1).mean().item())
        values["acceptance"].append(torch.minimum(p_TV, q_TV).sum(-1).mean().item())
        ranked = [
            logits_TV.argsort(dim=-1, descending=True).tolist()
            for logits_TV in (dense_TV, pruned_TV)
        ]
        for name, k in (("agreement", 1), ("top5_agreement", 5)):
            common = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(*ranked, strict=True)]
            values[name].append(sum(common) / len(common))
    return values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_float64_loop(architecture: str) -> None:
    dense, pruned = pair(architecture)
    measured = found(Resident(dense), Resident(pruned))
    expected = by_hand(dense, pruned)
    assert measured.keys() == expected.keys()
    for name in NAMES:
        assert measured[name] == pytest.approx(expected[name], rel=1e-4)
    assert min(measured["kl"]) > 1e-3 and 0 < min(measured["agreement"]) < 1


def test_any_device_finds_the_same(device: torch.device) -> None:
    dense, pruned = pair()
    expected = found(Resident(dense), Resident(pruned))
    measured = found(*(Resident(one.to(device)) for one in pair()))
    for name in NAMES:
        assert measured[name] == pytest.approx(expected[name], rel=1e-4)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    assert found(model, model) == {"kl": [0.0] * 5, **{name: [1.0] * 5 for name in NAMES[1:]}}


def test_predictions_that_are_not_finite_are_no_small_divergence() -> None:
    broken = tiny_model("llama-gqa")
    broken.model.norm.weight.data[:] = float("nan")
    assert all(kl != kl for kl in found(Resident(tiny_model("llama-gqa")), Resident(broken))["kl"])


@pytest.mark.parametrize("placement", ["device", "auto", "stream"])
def test_every_placement_keeps_the_same_states(
    placement: str, model_dir: Path, tmp_path: Path
) -> None:
    _, pruned = pair()
    dense = placed_at(placement, model_dir, tmp_path / "work")
    states = reference_states(dense, BATCHES)
    expected = reference_states(placed_at("device", model_dir), BATCHES)
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert compare(Resident(pruned), states, BATCHES) == compare(
        Resident(pruned), expected, BATCHES
    )


def test_a_run_compares_what_is_pruned_with_what_was_before(
    model_dir: Path, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    options = [
        "eval=[perplexity,divergence]",
        f"eval.divergence.datasets=[{text_file}]",
        "eval.divergence.seq_len=[8,16]",
    ]
    options += [f"eval.{name}.max_tokens=160" for name in ("divergence", "perplexity")]
    report = run(composed(*tiny(model_dir, text_file), *options, "ratio=0.4"), tmp_path)
    names = {f"words.txt/{name}@{length}" for name in NAMES for length in (8, 16)}
    numbers = report.evaluation["pruned"]
    of_text = {"words.txt/perplexity@16", "words.txt/bits_per_byte@16"}
    assert set(numbers) == {*of_text, *names, *(f"{name}_stderr" for name in names)}
    assert set(report.evaluation["dense"]) == of_text == set(report.difference_stderr)
    for length in (8, 16):
        assert 0 < numbers[f"words.txt/kl@{length}_stderr"] < numbers[f"words.txt/kl@{length}"]
    assert report.domains == dict.fromkeys(
        ["words.txt/perplexity@16", "words.txt/divergence@8", "words.txt/divergence@16"],
        "calibration",
    )
    task = Divergence([str(text_file)], seq_len=16, max_tokens=160).prepare(tokenizer, 128)[0]
    dense = placed_at("device", model_dir)
    pruned = placed_at("device", tmp_path / "checkpoint")
    assert task.reference is not None
    again = task.run(pruned, task.reference(dense))
    assert {name: numbers[name] for name in again.numbers} == again.numbers
    of_names = {name.rpartition("/")[2]: better for name, better in again.better.items()}
    assert of_names == {f"{name}@16": "higher" for name in NAMES[1:]} | {"kl@16": "lower"}
