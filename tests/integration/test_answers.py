"""Whole runs that are calibrated on the model's own answers to prompts of a file, and trained on them."""

import json
import random
from pathlib import Path

import pytest
import torch

from flap.data import Text, split_windows
from flap.data.counted import marked
from flap.evaluation import Measurement, Task
from flap.method.calibration import answers
from flap.method.recovery.distillation import training_windows
from flap.pipeline import run
from flap.results import markdown
from flap.runs.preparation import prepare
from flap.runs.texts import domain_of_task
from tests.helpers.runs import composed, tiny

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "ran", "a", "dog"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows without answers: only the model can give them."""
    path = tmp_path_factory.mktemp("prompts") / "asked.jsonl"
    rows = [
        {"prompt": " ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 6 + n % 3))}
        for n in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    before = prepare(
        composed(*base), tmp_path / "before"
    )  # as a start that measures more: nothing is written yet
    asking = Task("asked", lambda _: Measurement(), shares_text_with=(str(prompts),))
    assert domain_of_task(before.texts, asking) == "calibration"
    assert (
        before.sources["calibration"] == first.sources["calibration"] == f"{prompts}; {text_file}"
    )
    assert use == "calibration (asked.jsonl)" and facts["cache"] == "miss" and facts["tokens"] > 0
    assert facts["begins_with"].endswith(" prompts of asked.jsonl") and facts[
        "begins_with"
    ] in markdown(first)
    documents = [
        json.loads(line)["text"]
        for line in (tmp_path / "first" / "self_calibration_asked.jsonl").open()
    ]
    assert documents and all(len(text.split()) > 5 for text in documents)
    again = run(composed(*base, "ratio=0.4"), tmp_path / "again")
    assert again.own_text[use]["cache"] == "hit" and again.statistics_cache == "hit"
    counted = run(composed(*base, "calibration.count=answers"), tmp_path / "counted")
    assert (
        counted.statistics_cache == "miss"
        and counted.evaluation["dense"] == first.evaluation["dense"]
    )


def test_it_is_pruned_on_answers_alone(base: list[str], tmp_path: Path) -> None:
    own = [
        "calibration.count=answers",
        "calibration.seq_len=16",
        "calibration.num_samples=10",
        "checkpoint.save=true",
    ]
    more = ["method=flap_plus", "structure.tokens=32", "model.placement=stream"]
    report = run(composed(*base, *own, *more), tmp_path / "run")
    assert (
        report.ratio["realised_decoder"] == pytest.approx(0.2, abs=0.03)
        and report.evaluation["pruned"]
    )


@pytest.mark.parametrize(("choice", "writer"), [("full", "both"), ("reconstruct", "pruned")])
def test_it_is_trained_on_its_own_text(
    choice: str, writer: str, base: list[str], prompts: Path, tmp_path: Path
) -> None:
    full = [
        f"recover.dataset={prompts}",
        "recover.tokens=32",
        "recover.seq_len=8",
        "recover.batch_size=2",
    ]
    options = [f"recover={choice}", *(full if choice == "full" else ["recover.batch_size=2"])]
    if choice == "full":
        options.append("calibration.num_samples=4")
    trained = run(composed(*base, *options, f"recover.writer={writer}"), tmp_path / "own")
    dense = run(composed(*base, *options), tmp_path / "dense")
    assert (
        trained.recovery["nats_before"] == dense.recovery["nats_before"]
    )  # on the dense model's answers, held out
    assert trained.recovery["nats_by_tokens"][-1] != dense.recovery["nats_by_tokens"][-1]
    assert (
        " (asked.jsonl, after compression) text itself, from " in markdown(trained)
        and not dense.recovery["own_text"]
    )
    # the same state by Trainer, batch by batch, and by tokens
    assert dense.recovery["nats_by_tokens"][0][1] == pytest.approx(
        dense.recovery["nats_before"], rel=1e-4
    )


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
    words = [random.Random(0).choices(WORDS, k=n) for n in (21 * 16, 24 * 16)]
    windows = prepared.texts["calibration"]
    texts = (
        Text("asked.jsonl", " ".join(of), "", counted=((0, 2000),)) for of in words
    )  # all of it is an answer
    dense, own = (windows.written(0, text) for text in texts)  # own has what dense has
    trained_NT = training_windows(prepared.choices.recovery, dense, own)
    held_out_NT, (text_N, held_N), (own_NT, _) = (
        trained_NT[:8],
        *map(split_windows, (dense.text_N, own.tokens_NT)),
    )
    assert torch.equal(
        (held_out_NT >= 0).any(dim=1), held_N == 0
    )  # it judges by answers, not by the text beside them
    (fitting_NT, _), seen_N = (
        split_windows(dense.tokens_NT),
        (own_NT[:, None] == held_out_NT).all(dim=-1).any(dim=1),
    )
    theirs_N = (text_N == 0).nonzero().flatten()[::2]
    assert len(theirs_N) == 8 and seen_N[theirs_N].any() and not seen_N[theirs_N].all()
    fitting_NT[theirs_N] = own_NT[theirs_N]
    counted_NT = ~(torch.isin(torch.arange(32), theirs_N) & seen_N)[:, None] | (
        torch.arange(16) < 12
    )
    assert torch.equal(trained_NT[8:], marked(fitting_NT, counted_NT))


def test_where_the_pruned_model_writes_too_little_the_dense_one_s_answers_stay(
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ["recover=reconstruct", "recover.batch_size=2"]
    dense = run(composed(*base, *options), tmp_path / "dense")
    whole = answers.answer
    monkeypatch.setattr(
        answers,
        "answer",
        lambda *given: (written := whole(*given)) | {"answered": written["answered"][:1]},
    )
    own = run(
        composed(*base, *options, "recover.writer=pruned"), tmp_path / "own"
    )  # the dense one's are in the cache
    assert own.recovery["nats_by_tokens"] == dense.recovery["nats_by_tokens"]
    assert (
        "recover.writer=pruned: the dense model's answers stay (calibration.dataset=asked.jsonl: "
        in caplog.text
    )
