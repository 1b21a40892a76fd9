"""Tasks of lm-eval can use documents from the user's files. Invalid files are refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nltk
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from lm_eval.models import huggingface
from transformers import PreTrainedTokenizerFast

from flap.data.overlap import ReadText
from flap.evaluation import Task
from flap.evaluation.generation import Generation
from flap.evaluation.left_out import without_read
from flap.evaluation.zero_shot import ZeroShot
from flap.evaluation.zero_shot_tasks import _lacks
from flap.models import Resident
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB, smollm

QUESTIONS = {
    "Tom has 3 apples in his big basket and buys 4 more at the market. How many has he now?": 7,
    "A farmer fills 5 boxes with 6 eggs each and carries them home. How many eggs are there?": 30,
    "Ann is 12 years of age, and her small brother is half as old as she is. How old is he?": 6,
    "The bus leaves with 40 people, and 9 of them get off at the old bridge. Who is left?": 31,
}
SUMS = [
    {"question": question, "answer": f"We count them one by one.\n#### {number}"}
    for question, number in QUESTIONS.items()
]
ORDERS = [
    {
        "key": 1000,
        "prompt": "Write about the sea. Do not use any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 1001,
        "prompt": "Write at least 3 words about a town, all in lower case.",
        "instruction_id_list": ["length_constraints:number_words", "change_case:english_lowercase"],
        "kwargs": [{"relation": "at least", "num_words": 3}, {}],
    },
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return smollm()


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    return lines(tmp_path / "sums.jsonl", SUMS)


def asked(
    task: Task, monkeypatch: pytest.MonkeyPatch, answers: Sequence[str]
) -> tuple[list[str], dict[str, float]]:
    """Run a task on a fake model that returns `answers`. Return the prompts and the results."""
    prompts: list[str] = []

    def write(self: Any, requests: list[Any], **_: Any) -> list[str]:
        prompts.extend(request.args[0] for request in requests)
        return list(answers[len(prompts) - len(requests) : len(prompts)])

    monkeypatch.setattr(huggingface.HFLM, "generate_until", write)
    found = task.run(Resident(tiny_model("llama-gqa", vocab_size=VOCAB)))
    return prompts, found.numbers


@pytest.mark.long
def test_gsm8k_asks_the_documents_of_a_file(
    sums: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Generation(["gsm8k"], num_fewshot=2, batch_size=1, source=sums)
    [task] = evaluator.prepare(tokenizer, 2048)
    assert task.origin.startswith("sums.jsonl, 4 documents (sha256 ")
    assert task.identity["documents"] == task.origin
    assert sums in task.shares_text_with

    prompts, numbers = asked(task, monkeypatch, ["#### 7", "It is 7", "#### 7", "#### 7"])
    for prompt in prompts:
        questions = [row["question"] for row in SUMS if row["question"] in prompt]
        assert len(questions) == 3  # the questions of a document and of two few-shot examples
        assert prompt.count("#### ") == 2
    assert numbers["gsm8k/exact_match,strict-match"] == 0.25
    assert numbers["gsm8k/exact_match,flexible-extract"] == 0.25


@pytest.mark.long
def test_documents_that_the_run_has_read_are_left_out(
    sums: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Generation(["gsm8k"], num_fewshot=2, source=sums).prepare(tokenizer, 2048)
    read = ReadText("calibration", "calibration.dataset=mine.jsonl", (SUMS[1]["question"],))
    [task] = without_read(tasks, [read])
    assert task.left_out == (1,)
    prompts, _ = asked(task, monkeypatch, ["#### 7"] * 3)
    assert len(prompts) == 3
    assert not any(SUMS[1]["question"] in prompt for prompt in prompts)


@pytest.mark.long
def test_ifeval_scores_the_instructions_of_a_folder_s_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_: False)
    lines(tmp_path / "ifeval.jsonl", ORDERS)
    evaluator = Generation(["ifeval"], num_fewshot=0, batch_size=1, source=str(tmp_path))
    [task] = evaluator.prepare(tokenizer, 2048)
    # The longest prompt is processed first, so the first answer below is for ORDERS[1].
    prompts, numbers = asked(task, monkeypatch, ["A town with TREES", "the blue sea"])
    assert sorted(prompts) == sorted(row["prompt"] for row in ORDERS)
    assert numbers["ifeval/prompt_level_strict_acc"] == 0.5
    assert numbers["ifeval/inst_level_strict_acc"] == pytest.approx(2 / 3)


@pytest.mark.long
def test_each_format_holds_the_same_documents(
    sums: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    table = pyarrow.Table.from_pylist(SUMS)
    (tmp_path / "sums.json").write_text(json.dumps(SUMS))
    pyarrow.parquet.write_table(table, tmp_path / "sums.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "sums.csv")
    origins = set()
    for suffix in ("jsonl", "json", "parquet", "csv"):
        source = str(tmp_path / f"sums.{suffix}")
        [task] = Generation(["gsm8k"], num_fewshot=0, source=source).prepare(tokenizer, 2048)
        origins.add(task.origin.removeprefix(f"sums.{suffix}"))
    assert len(origins) == 1


def test_a_folder_has_a_file_for_each_task(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    question = {"sentence": "The sea is _", "option1": "blue", "option2": "dry", "answer": "1"}
    lines(tmp_path / "winogrande.jsonl", [question] * 2)
    lines(tmp_path / "gsm8k.jsonl", SUMS)
    evaluator = ZeroShot(["gsm8k", "winogrande"], num_fewshot=0, source=str(tmp_path))
    tasks = evaluator.prepare(tokenizer, 2048)
    assert [task.name for task in tasks] == ["gsm8k", "winogrande"]
    assert " 4 documents" in tasks[0].origin and " 2 documents" in tasks[1].origin


@pytest.mark.parametrize(
    ("rows", "tasks", "message"),
    [
        (ORDERS, ["gsm8k"], "no column 'question', which gsm8k needs, only key, prompt, instr"),
        (SUMS, ["ifeval"], "no column 'prompt', which ifeval needs, only question, answer"),
        ([*SUMS, {"question": "And?"}], ["gsm8k"], "row 5 has no 'answer', which gsm8k needs"),
        ([{**ORDERS[0], "kwargs": None}], ["ifeval"], r"row 1: does not suit ifeval \(TypeError"),
        ([], ["gsm8k"], "mine.jsonl holds no documents"),
        ([{"question": 1}, {"question": "a"}], ["gsm8k"], "mine.jsonl is no table with one type"),
        (SUMS, ["gsm8k", "gsm8k_cot"], "one file holds the documents of one task, but these are"),
    ],
)
def test_documents_that_do_not_suit_a_task_are_one_line(
    rows: list[dict[str, Any]],
    tasks: list[str],
    message: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_: False)
    source = lines(tmp_path / "mine.jsonl", rows)
    line = rf"^eval\.generation\.source={source}: {message}"
    with pytest.raises(ValueError, match=line) as error:
        Generation(tasks, num_fewshot=0, source=source).prepare(tokenizer, 2048)
    assert "\n" not in str(error.value)


def test_a_source_that_does_not_exist_is_one_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"^eval\.zero_shot\.source=none\.jsonl: expected auto, "):
        ZeroShot(["gsm8k"], source="none.jsonl")
    with pytest.raises(ValueError, match=r": no file for gsm8k; expected one of gsm8k\.jsonl"):
        ZeroShot(["gsm8k"], source=str(tmp_path)).prepare(tokenizer, 2048)
    for name in ("gsm8k.jsonl", "gsm8k.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=r": gsm8k\.jsonl and gsm8k\.json; expected one of"):
        ZeroShot(["gsm8k"], source=str(tmp_path)).prepare(tokenizer, 2048)


def test_a_package_that_a_task_needs_is_named() -> None:
    assert _lacks(ImportError(name="langdetect")).endswith("pip install 'lm_eval[ifeval]'")
    assert _lacks(ImportError(name="nothing_else.at_all")).endswith("pip install nothing_else")


def test_a_run_leaves_out_what_it_was_calibrated_on(
    sums: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model("llama-gqa", vocab_size=VOCAB, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = f"{TEXT[0]} {SUMS[2]['question']} " * 100
    calibration = lines(tmp_path / "read.jsonl", [{"text": text}])
    arguments = [
        *tiny(tmp_path / "model", tmp_path / "read.jsonl")[:5],
        f"calibration.dataset={calibration}",
        "eval=[generation]",
        "eval.generation.tasks=[gsm8k]",
        f"eval.generation.source={sums}",
        "eval.generation.num_fewshot=0",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    report = run(composed(*arguments), tmp_path / "run")
    assert report.left_out == {"gsm8k": 1}
    assert report.evaluation["dense"]["gsm8k/exact_match,strict-match"] == 0
