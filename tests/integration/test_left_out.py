"""Evaluation leaves out documents that the run has read for calibration, training or trimming."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.data.named_prompts import named_prompts
from flap.data.overlap import ReadText, turns
from flap.evaluation import Task, prepare_tasks
from flap.evaluation.left_out import without_read
from flap.evaluation.zero_shot import ZeroShot
from flap.pipeline import run
from flap.results import Report
from flap.runs.preparation import prepare
from tests.helpers.runs import composed, tiny

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
DOCUMENTS = [
    " ".join(WORDS[(n * k + k // 3) % len(WORDS)] for k in range(1, 40)) for n in range(1, 12)
]
NAME = "mine.jsonl/perplexity@16"


def write(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write(tmp_path / "mine.jsonl", DOCUMENTS)


@pytest.fixture
def base(model_dir: Path, text_file: Path, mine: Path, tmp_path: Path) -> list[str]:
    return [
        *tiny(model_dir, text_file),
        f"eval.perplexity.datasets=[{mine}]",
        f"cache_dir={tmp_path / 'cache'}",
        "calibration.num_samples=4",
        "checkpoint.save=false",
    ]


def tasks(*options: str) -> list[Task]:
    return list(prepare(composed(*options), None).tasks)


def test_a_run_is_measured_on_what_it_has_not_read(
    base: list[str], text_file: Path, tmp_path: Path
) -> None:
    part = write(tmp_path / "part.jsonl", DOCUMENTS[:5])
    report = run(composed(*base, f"calibration.dataset={part}"), tmp_path / "run")
    assert report.left_out == {NAME: 5}
    line = f"Documents left out, because the run has read them in its texts: 5 of {NAME}."
    assert line in (tmp_path / "run" / "report.md").read_text()
    assert Report.load(tmp_path / "run" / "report.json").left_out == report.left_out

    other = run(composed(*base, f"calibration.dataset={text_file}"), tmp_path / "other")
    assert other.left_out == {}
    assert other.evaluation["dense"][NAME] != report.evaluation["dense"][NAME]
    assert other.inputs[NAME] != report.inputs[NAME]

    rest = write(tmp_path / "rest" / "mine.jsonl", DOCUMENTS[5:])
    of_rest = run(
        composed(*base, f"eval.perplexity.datasets=[{rest}]", f"calibration.dataset={part}"),
        tmp_path / "of_rest",
    )
    assert of_rest.evaluation == report.evaluation


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        (["calibration.dataset={0}"], "calibration (calibration.dataset={0})"),
        (
            ["recover=full", "recover.dataset={0}", "recover.tokens=64", "recover.seq_len=8"],
            "recovery (recover.dataset={0})",
        ),
        (
            ["vocabulary=trim", "vocabulary.dataset={0}", "vocabulary.size=80"],
            "vocabulary (vocabulary.dataset={0})",
        ),
    ],
)
def test_whatever_reads_a_text_it_is_not_measured_on(
    options: list[str], reader: str, base: list[str], mine: Path
) -> None:
    with pytest.raises(ValueError) as error:
        tasks(*base, *(option.format(mine) for option in options))
    assert str(error.value) == (
        "eval.perplexity.datasets=mine.jsonl: all 11 documents were read for "
        f"{reader.format(mine)}; nothing is left "
        "to measure; choose another task or another text"
    )


@pytest.mark.parametrize("writer", ["given", "self"])
def test_prompts_are_read_whoever_answers_them(
    writer: str, base: list[str], text_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": text, "answer": "cat"} for text in DOCUMENTS]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        f"calibration.dataset={{{prompts}: {{weight: 1, chat_template: false}}}}",
        f"calibration.answers={writer}",
        "calibration.max_new_tokens=4",
        "eval=[perplexity,generation]",
        f"eval.perplexity.datasets=[{text_file}]",
        f"eval.generation.tasks=[{prompts}]",
        "eval.generation.num_fewshot=0",
    ]
    with pytest.raises(
        ValueError, match=r"^eval\.generation\.tasks=prompts\.jsonl: all 11 documents"
    ):
        tasks(*base, *options)


@pytest.mark.parametrize(
    "option", ["calibration.num_samples=1", "calibration.num_samples=9", "seed=1"]
)
def test_cells_of_a_sweep_are_measured_on_the_same_documents(
    option: str, base: list[str], text_file: Path, tmp_path: Path
) -> None:
    """All runs of a sweep leave out the documents of all calibration texts: `part` and `light`.

    This holds even if a run takes no calibration window from `light`, which has a low weight.
    """
    part = write(tmp_path / "part.jsonl", DOCUMENTS[:5])
    light = write(tmp_path / "light.jsonl", DOCUMENTS[5:7] * 20)
    mixture = f"calibration.dataset={{{part}: 8, {light}: 1}}"
    [expected] = tasks(*base, mixture)
    [task] = tasks(*base, mixture, option)
    assert task.left_out == (0, 1, 2, 3, 4, 5, 6) and task.identity == expected.identity


def passages(task: Task, field: str) -> list[str]:
    """Return the value of `field` in each document of the task."""
    [asked] = task.run.keywords["task"].loaded["tasks"].values()
    return [row[field] for row in asked.eval_docs]


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "prompts", "field"),
    [("boolq", "boolq-questions", "passage"), ("social_iqa", "siqa-questions", "context")],
)
def test_packaged_prompts_are_not_measured_on(
    task: str, prompts: str, field: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A task leaves out each document whose passage is in a prompt that the run calibrates on."""
    named, _ = named_prompts(prompts, "calibration.dataset")
    texts = tuple(turn for prompt in named for turn in turns(prompt))
    read = ReadText("calibration", f"calibration.dataset={prompts}", texts)
    evaluators = {"zero_shot": ZeroShot([task], source="packaged")}
    [whole] = prepare_tasks(evaluators, tokenizer, 128)
    documents = passages(whole, field)
    asked = {text.split("\nQuestion:")[0] for text in texts}
    expected = {n for n, passage in enumerate(documents) if passage in asked}

    [remaining] = without_read([whole], [read])
    assert len(expected) > 1000 and expected <= {*remaining.left_out}
    assert len(remaining.left_out) < 1.03 * len(expected)
    left = passages(remaining, field)
    assert asked.isdisjoint(left) and len(left) == len(documents) - len(remaining.left_out)
