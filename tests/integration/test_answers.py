"""Complete runs that calibrate and train on answers that the model generates for given prompts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from flap.data import Text, split_windows
from flap.evaluation import Measurement, Task
from flap.method.calibration import answers
from flap.method.recovery.distillation import training_windows
from flap.pipeline import run
from flap.results import markdown
from flap.runs.preparation import prepare
from flap.runs.texts import domain_of_task
from tests.helpers.marks import quick
from tests.helpers.runs import composed, tiny

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "ran", "a", "dog"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of 80 prompts without answers."""
    path = tmp_path_factory.mktemp("prompts") / "asked.jsonl"
    lines = list[str]()
    for n in range(80):
        words = [WORDS[(n * k) % len(WORDS)] for k in range(1, 6 + n % 3)]
        lines.append(json.dumps({"prompt": " ".join(words)}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def base(prompts: Path, model_dir: Path, text_file: Path, tmp_path: Path) -> list[str]:
    dataset = f"calibration.dataset={{{prompts}:1,{text_file}:1}}"
    own = [
        "calibration.answers=self",
        "calibration.max_new_tokens=6",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    return [*tiny(model_dir, text_file), dataset, *own, "checkpoint.save=false"]


def test_a_run_says_what_was_answered_and_another_takes_it_from_the_cache(
    base: list[str], prompts: Path, text_file: Path, tmp_path: Path
) -> None:
    first = run(composed(*base), tmp_path / "first")
    [(use, facts)] = first.own_text.items()
    # `prepare` alone does not read the model's answers. Neither does a later invocation of the
    # command that only adds measurements to a finished run. The sources that `prepare` names for
    # the texts must nevertheless equal the sources in the report of the run that reads the answers.
    before = prepare(composed(*base), tmp_path / "before")
    task = Task("asked", lambda _: Measurement(), shares_text_with=(str(prompts),))
    assert domain_of_task(before.texts, task) == "calibration"
    sources = f"{prompts}; {text_file}"
    assert before.sources["calibration"] == first.sources["calibration"] == sources

    assert use == "calibration (asked.jsonl)"
    assert facts["cache"] == "miss"
    assert facts["tokens"] > 0
    assert facts["begins_with"].endswith(" prompts of asked.jsonl")
    assert facts["begins_with"] in markdown(first)
    written = (tmp_path / "first" / "self_calibration_asked.jsonl").read_text()
    documents = [json.loads(line)["text"] for line in written.splitlines()]
    assert documents
    assert all(len(text.split()) > 5 for text in documents)

    again = run(composed(*base, "ratio=0.4"), tmp_path / "again")
    assert again.own_text[use]["cache"] == "hit"
    assert again.statistics_cache == "hit"
    on_answers = run(composed(*base, "calibration.count=answers"), tmp_path / "on_answers")
    assert on_answers.statistics_cache == "miss"
    assert on_answers.evaluation["dense"] == first.evaluation["dense"]


def test_it_is_pruned_on_answers_alone(base: list[str], tmp_path: Path) -> None:
    options = [
        "calibration.count=answers",
        "calibration.seq_len=16",
        "calibration.num_samples=10",
        "checkpoint.save=true",
        "method=flap_plus",
        "structure.tokens=32",
        "model.placement=stream",
    ]
    report = run(composed(*base, *options), tmp_path / "run")
    assert report.ratio["realised_decoder"] == pytest.approx(0.2, abs=0.03)
    assert report.evaluation["pruned"]


@pytest.mark.parametrize(
    ("choice", "writer"), quick(1, [("full", "both"), ("reconstruct", "pruned")])
)
def test_it_is_trained_on_its_own_text(
    choice: str, writer: str, base: list[str], prompts: Path, tmp_path: Path
) -> None:
    options = [f"recover={choice}", "recover.batch_size=2"]
    if choice == "full":
        options += [f"recover.dataset={prompts}", "recover.tokens=32", "recover.seq_len=8"]
        options.append("calibration.num_samples=4")
    trained = run(composed(*base, *options, f"recover.writer={writer}"), tmp_path / "own")
    dense = run(composed(*base, *options), tmp_path / "dense")
    # Both runs measure the progress of training with the same text: held-out answers of the dense
    # model.
    assert trained.recovery["nats_before"] == dense.recovery["nats_before"]
    assert trained.recovery["nats_by_tokens"][-1] != dense.recovery["nats_by_tokens"][-1]
    assert " (asked.jsonl, after compression) text itself, from " in markdown(trained)
    assert not dense.recovery["own_text"]
    # transformers' Trainer evaluates the model for the first time before it trains, so the first
    # entry of nats_by_tokens is the divergence before training.
    _, nats = dense.recovery["nats_by_tokens"][0]
    assert nats == pytest.approx(dense.recovery["nats_before"], rel=1e-4)


def test_half_of_each_text_that_is_asked_is_the_pruned_model_s_and_nothing_held_out_counts(
    base: list[str], tmp_path: Path
) -> None:
    options = [
        "recover=reconstruct",
        "recover.writer=both",
        "recover.batch_size=1",
        "calibration.num_samples=40",
    ]
    prepared = prepare(composed(*base, *options), tmp_path / "run")
    windows = prepared.texts["calibration"]
    # Each text stands for one long answer of a model. The pruned model's answer begins with all
    # words of the dense model's answer, so that some windows of the two answers are equal.
    words = random.Random(0).choices(WORDS, k=21 * 16)
    more_words = random.Random(0).choices(WORDS, k=24 * 16)
    of_dense = Text("asked.jsonl", " ".join(words), "", counted=((0, 2000),))
    of_pruned = Text("asked.jsonl", " ".join(more_words), "", counted=((0, 2000),))
    dense = windows.written(0, of_dense)
    pruned = windows.written(0, of_pruned)
    trained = training_windows(prepared.choices.recovery, dense, pruned)

    # The first 8 windows are held out. In held-out windows without answers, the mask is false.
    held_out = trained[:8]
    text_N, held_out_text_N = split_windows(dense.text_N)
    assert torch.equal(held_out.mask_NT.any(dim=1), held_out_text_N == 0)

    # Of the training windows that contain answers, every second one comes from the pruned model.
    expected_NT, _ = split_windows(dense.batch.tokens_NT)
    pruned_NT, _ = split_windows(pruned.batch.tokens_NT)
    of_pruned_N = (text_N == 0).nonzero().flatten()[::2]
    expected_NT[of_pruned_N] = pruned_NT[of_pruned_N]
    # In copies of held-out windows, the mask is false for tokens that end 13 held-out tokens.
    held_out_N = (pruned_NT[:, None] == held_out.tokens_NT).all(dim=-1).any(dim=1)
    assert len(of_pruned_N) == 8
    assert held_out_N[of_pruned_N].any()
    assert not held_out_N[of_pruned_N].all()
    left_out_N = torch.isin(torch.arange(32), of_pruned_N) & held_out_N
    mask_NT = ~left_out_N[:, None] | (torch.arange(16) < 12)
    assert torch.equal(trained[8:].tokens_NT, expected_NT)
    assert torch.equal(trained[8:].mask_NT, mask_NT)


def test_where_the_pruned_model_writes_too_little_the_dense_one_s_answers_stay(
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ["recover=reconstruct", "recover.batch_size=2"]
    dense = run(composed(*base, *options), tmp_path / "dense")
    answer = answers.answer

    def one_answer(*arguments: Any) -> dict[str, Any]:
        written = answer(*arguments)
        return written | {"answered": written["answered"][:1]}

    # The answers of the dense model are already in the cache. So with this patch, only the pruned
    # model generates too few answers.
    monkeypatch.setattr(answers, "answer", one_answer)
    pruned = run(composed(*base, *options, "recover.writer=pruned"), tmp_path / "pruned")
    assert pruned.recovery["nats_by_tokens"] == dense.recovery["nats_by_tokens"]
    message = (
        "recover.writer=pruned: training uses the dense model's answers instead "
        "(calibration.dataset=asked"
    )
    assert message in caplog.text
