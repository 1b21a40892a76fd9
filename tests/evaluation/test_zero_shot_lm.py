"""flap answers lm-eval's requests to a model in steps, with the same batches as lm-eval itself.

A step answers the requests of one batch or of a few batches. The answers of each finished step are
stored, so that an interrupted task continues after this step.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models import huggingface
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedTokenizerFast

from flap.evaluation import zero_shot_lm
from flap.evaluation.zero_shot_lm import ResumableLM
from flap.pipeline import run
from flap.results import Report
from flap.storage import NOT_KEPT, WorkFolder
from tests.cases import tiny_model
from tests.helpers.forked import forked
from tests.helpers.runs import composed, tiny
from tests.helpers.zero_shot_toys import only_toys

PROMPTS = ["the old cat", "a", "then it was", "a", "the mat and the tree", "red", "on the mat"]
SHORT = {"until": ["dog"], "max_gen_toks": 2, "do_sample": False}
LONG = {"until": ["dog"], "max_gen_toks": 5, "do_sample": False}
DRAWN = {"until": ["dog"], "max_gen_toks": 3, "do_sample": True, "temperature": 1.0}
# Each pair has a context and a continuation. Without their last tokens, the last three pairs all
# read "the old". So lm-eval runs the model only once for these three pairs.
PAIRS = [
    ("the", " cat and the dog"),
    ("a red", " mat"),
    ("under the old", " tree"),
    ("it was", " then"),
    ("the old", " cat"),
    ("the", " old dog"),
    ("the old", " mat"),
]
REQUESTS = {
    "generate_until": [
        *((prompt, SHORT) for prompt in PROMPTS),
        *((prompt, LONG) for prompt in PROMPTS[:3]),
        *((prompt, DRAWN) for prompt in PROMPTS[:3]),
    ],
    "loglikelihood": PAIRS,
    "loglikelihood_rolling": [(" ".join(PROMPTS * 12),), ("the cat",)],
}
Inputs = list[list[list[int]]]
MakeLM = Callable[..., ResumableLM]


def requests(kind: str) -> list[Any]:
    return [SimpleNamespace(args=arguments) for arguments in REQUESTS[kind]]


@contextmanager
def watched(kill_at: int | None = None, journal: Path | None = None) -> Iterator[Inputs]:
    """Within the `with` block, record the input tokens of each forward pass of a model.

    kill_at: the number of the forward pass at which this process is killed, counted from 1. If
        None, the process is not killed.
    journal: a file to which a line is added for each forward pass.
    """
    inputs: Inputs = []

    def note(module: nn.Module, given: Any, _: Any) -> None:
        if not isinstance(module, nn.Embedding):
            return
        inputs.append(given[0].tolist())
        if journal is not None:
            with journal.open("a") as file:
                file.write(f"{given[0].tolist()}\n")
        if len(inputs) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with register_module_forward_hook(note):
        yield inputs


@pytest.fixture
def lm_of(tokenizer: PreTrainedTokenizerFast) -> MakeLM:
    """Return a function that wraps a tiny bfloat16 model so that lm-eval can measure the model.

    In bfloat16, rounding makes the answers depend on which requests are in the same batch. So if
    the batches differ from those of lm-eval, the answers differ, too.
    """

    def make(work: WorkFolder = NOT_KEPT, batch_size: int = 2) -> ResumableLM:
        model = tiny_model("llama-gqa").to(torch.bfloat16)
        return ResumableLM(
            "toys", work, pretrained=model, tokenizer=tokenizer, batch_size=batch_size
        )

    return make


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("most_notes", [1, 2, 100])
def test_batches_and_answers_are_those_of_lm_eval(
    kind: str,
    most_notes: int,
    lm_of: MakeLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zero_shot_lm, "MOST_NOTES", most_notes)
    model = tiny_model("llama-gqa").to(torch.bfloat16)
    theirs = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    asked = [request for request in requests(kind) if DRAWN not in request.args]
    answers = []
    calls = []
    for lm in (theirs, lm_of()):
        with watched() as inputs:
            answers.append(getattr(lm, kind)(asked, disable_tqdm=True))
        calls.append(inputs)
    assert answers[0] == answers[1]
    assert calls[0] == calls[1] and len(calls[0]) > 1


@pytest.mark.parametrize("kind", REQUESTS)
def test_finished_steps_are_not_done_again(kind: str, lm_of: MakeLM, tmp_path: Path) -> None:
    with watched() as undisturbed:
        expected = getattr(lm_of(), kind)(requests(kind))

    with pytest.raises(KeyboardInterrupt), watched() as before:
        lm = lm_of(WorkFolder(tmp_path))
        stop_after(lm, calls=len(undisturbed) // 2)
        getattr(lm, kind)(requests(kind))
    kept = len([*tmp_path.rglob("answers-*.sha256")])
    with watched() as after:
        assert getattr(lm_of(WorkFolder(tmp_path)), kind)(requests(kind)) == expected
    assert kept and len(after) < len(undisturbed)
    # The resumed task repeats only the forward passes of the interrupted step.
    assert undisturbed[-len(after) :] == after
    assert len(before) + len(after) - len(undisturbed) <= LONG["max_gen_toks"]

    with watched() as again:
        assert getattr(lm_of(WorkFolder(tmp_path)), kind)(requests(kind)) == expected
    assert again == []


def stop_after(lm: ResumableLM, calls: int) -> None:
    """Make the model of `lm` raise KeyboardInterrupt in forward pass number `calls` + 1."""
    left = iter(range(calls))

    def count(*_: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    lm.model.get_input_embeddings().register_forward_pre_hook(count)


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_damaged_note_is_computed_again(
    kind: str, lm_of: MakeLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = getattr(lm_of(WorkFolder(tmp_path)), kind)(requests(kind))
    [note] = tmp_path.rglob("answers-1")
    whole = note.read_bytes()
    note.write_bytes(whole[:-2])
    with watched() as inputs:
        assert getattr(lm_of(WorkFolder(tmp_path)), kind)(requests(kind)) == expected
    assert 0 < len(inputs) <= SHORT["max_gen_toks"]
    assert f"{note}: is damaged" in caplog.text
    assert note.read_bytes() == whole


def test_answers_to_other_requests_are_not_used(lm_of: MakeLM, tmp_path: Path) -> None:
    lm = lm_of(WorkFolder(tmp_path))
    asked = requests("generate_until")
    lm.generate_until(asked)
    with watched() as inputs:
        found = lm.generate_until(asked[:1])
    assert inputs
    assert found == lm_of().generate_until(asked[:1])


def test_a_long_task_of_likelihoods_has_few_notes(
    lm_of: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero_shot_lm, "MOST_NOTES", 2)
    lm_of(WorkFolder(tmp_path), batch_size=1).loglikelihood(requests("loglikelihood"))
    assert len([*tmp_path.rglob("answers-*.sha256")]) == 2


# The following test does complete runs of flap.


def measure(
    folder: Path, arguments: list[str], toys: Path, kill_at: int | None, journal: Path
) -> None:
    torch.set_num_threads(1)
    with only_toys(toys), watched(kill_at, journal):
        run(composed(*arguments), folder)


@pytest.mark.long
def test_a_killed_run_continues_in_the_middle_of_a_task(
    model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    # The run is killed twice: while it measures the dense model, and while it measures the pruned
    # model.
    arguments = [
        *tiny(model_dir, text_file)[:5],
        "model.dtype=bfloat16",
        "eval=[zero_shot,generation]",
        "eval.zero_shot.tasks=[animals]",
        "eval.generation.tasks=[asked]",
    ]
    for name in ("zero_shot", "generation"):
        arguments += [f"eval.{name}.batch_size=2", f"eval.{name}.num_fewshot=1"]
    toys = tmp_path / "toys"
    toys.mkdir()

    def start(folder: str, kill_at: int | None = None) -> list[str]:
        """Run flap in a new process, and return one line for each of its forward passes."""
        journal = tmp_path / "journal"
        journal.write_text("")
        cache = f"cache_dir={tmp_path / folder / 'cache'}"
        code = forked(
            measure, tmp_path / folder / "run", [*arguments, cache], toys, kill_at, journal
        )
        assert code == (0 if kill_at is None else -signal.SIGKILL)
        return journal.read_text().splitlines()

    undisturbed = start("undisturbed")
    first = start("killed", kill_at=4)
    assert [*(tmp_path / "killed" / "cache").rglob("answers-*.sha256")]
    second = start("killed", kill_at=len(undisturbed) - len(first) - 2)
    third = start("killed")
    assert len(first) + len(second) + len(third) < len(undisturbed) + 10

    expected = Report.load(tmp_path / "undisturbed" / "run" / "report.json")
    report = Report.load(tmp_path / "killed" / "run" / "report.json")
    assert report.evaluation == expected.evaluation
    assert report.difference_stderr == expected.difference_stderr
    assert not [*(tmp_path / "killed" / "cache").rglob("answers-*")]
