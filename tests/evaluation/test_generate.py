"""Greedy continuations, by hand and in a whole run, and how much they repeat themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.data import repetition
from flap.evaluation import Generate
from flap.evaluation.generate import continuation
from flap.models import Resident
from flap.results import Report
from tests.cases import tiny_model

PROMPTS = ["the cat sat", "a dog"]


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """The likeliest token, again and again, without a cache."""
    for _ in range(count):
        tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
    return tokens[-count:]


@torch.no_grad()
def test_each_word_is_the_likeliest_whatever_the_models_own_options() -> None:
    model = tiny_model("llama-gqa")
    model.generation_config.eos_token_id = None
    expected = greedy(model, [5, 6, 7], 12)
    model.generation_config.repetition_penalty = 9.0
    assert continuation(model, [5, 6, 7], 12) == expected
    model.generation_config.eos_token_id = expected[4]
    assert continuation(model, [5, 6, 7], 12) == expected[: expected.index(expected[4]) + 1]
    assert model.generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5), ([7] * 12, 8 / 9), (list(range(9)), 0), ([1, 1], 0), ([], 0)],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_the_number_is_the_mean_over_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama-gqa")
    [task] = Generate(PROMPTS, max_new_tokens=20).prepare(tokenizer, 128)
    found = task.run(Resident(model))
    shares = [repetition(continuation(model, tokenizer(prompt).input_ids, 20)) for prompt in PROMPTS]
    assert found.numbers["generate/repetition@20"] == pytest.approx(sum(shares) / 2)
    assert found.documents == {"generate/repetition@20": shares}
    assert found.better == {"generate/repetition@20": "lower"}
    assert list(found.texts) == PROMPTS and all(found.texts.values())


def test_a_report_shows_both_models_texts(run_tiny: Callable[..., Report], tmp_path: Path) -> None:
    prompts = "eval.generate.prompts=['the cat','a *|* dog']"
    options = ["eval=[perplexity,generate]", prompts, "eval.generate.max_new_tokens=6", "checkpoint.save=false"]
    report = run_tiny(tmp_path, *options)
    dense, pruned = report.continuations["dense"], report.continuations["pruned"]
    assert list(dense) == list(pruned) == ["the cat", "a *|* dog"]
    lines = (tmp_path / "report.md").read_text().splitlines()
    first = lines.index("| prompt | dense | pruned |")
    assert lines[first + 2] == f"| the cat | {dense['the cat']} | {pruned['the cat']} |"
    assert lines[first + 3].startswith("| a \\*\\|\\* dog | ")
    assert any(line.startswith("| generate/repetition@6 | ") for line in lines)
    again = run_tiny(tmp_path, *options)
    assert again.continuations == report.continuations
    entries = json.loads((tmp_path / "evaluation.json").read_text()).values()
    assert [entry["texts"] for entry in entries if "texts" in entry] == [dense, pruned]
