"""The script answers/sciq.py and all reports in experiments/ are valid.

sciq.py writes calibration prompts that share no passage with its held-out prompts. `flap reproduce`
accepts all reports.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from flap.commands.reproduce import config_of, main
from flap.data.dialogue import plain_text
from flap.evaluation.prompts_task import load_prompts
from flap.evaluation.zero_shot_tasks import packaged
from flap.results.reproduction import read_finished

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPT = EXPERIMENTS / "answers" / "sciq.py"
REPORTS = sorted(EXPERIMENTS.rglob("reports/*.json"))
FILES = ("sciq.jsonl", "held_out.jsonl", "contaminated.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run experiments/answers/sciq.py, and return the folder with the files that it has written."""
    written = tmp_path_factory.mktemp("sciq")
    runpy.run_path(str(SCRIPT))["main"](*(str(written / name) for name in FILES))
    return written


def prompts(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def runs(text: str) -> set[tuple[str, ...]]:
    """Return each sequence of 13 successive words in a text, or all words of a shorter text."""
    words = text.split()
    return {tuple(words[at : at + 13]) for at in range(max(1, len(words) - 12))}


def texts(asked: str) -> list[str]:
    """Return the passage and the question of a prompt, separately and joined."""
    passage, question = asked.removesuffix("\nAnswer:").rsplit("\nQuestion: ", maxsplit=1)
    return [passage, question, asked]


def test_no_calibration_prompt_of_sciq_has_a_held_out_passage_or_question(folder: Path) -> None:
    calibration = prompts(folder, "sciq.jsonl")
    turns = [
        turn["content"] for row in calibration for turn in row["messages"] if turn["role"] == "user"
    ]
    read = set().union(*(runs(text) for turn in turns for text in texts(turn)))
    held_out = prompts(folder, "held_out.jsonl")
    assert len(turns) == 666 and len(held_out) == 214
    for row in held_out:
        for text in texts(row["prompt"]):
            assert read.isdisjoint(runs(text))
    contaminated = {row["prompt"] for row in prompts(folder, "contaminated.jsonl")}
    assert len(contaminated) > 600 and contaminated <= {*turns}


def test_held_out_documents_of_sciq_are_asked_as_the_task_asks_them(folder: Path) -> None:
    [task] = packaged("sciq_answers").loaded["tasks"].values()
    examples = [doc for doc in task.eval_docs if doc["support"].strip()][:5]
    known = {
        task.doc_to_text(doc): (task.fewshot_context(doc, 0), task.doc_to_target(doc))
        for doc in task.eval_docs
    }
    shots = "".join(
        task.doc_to_text(doc)
        + task.config.target_delimiter
        + task.doc_to_target(doc)
        + task.config.fewshot_delimiter
        for doc in examples
    )
    for name in FILES[1:]:
        mine, _ = load_prompts(str(folder / name))
        for row in mine.eval_docs:
            [turn] = json.loads(row["turns"])
            assert known[turn["content"]] == (mine.fewshot_context(row, 0), row["answer"])
        asked = mine.config.generation_kwargs
        assert asked["max_gen_toks"] == task.config.generation_kwargs["max_gen_toks"]
        assert {*asked["until"]} == {*task.config.generation_kwargs["until"], "\n\n"}
    turns = [
        {"role": role, "content": content}
        for doc in examples
        for role, content in (
            ("user", task.doc_to_text(doc)),
            ("assistant", task.doc_to_target(doc)),
        )
    ]
    assert plain_text([*turns, {"role": "user", "content": "asked"}]) == shots + "asked"


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_flap_reproduce_accepts_a_report(path: Path) -> None:
    report = read_finished(path).report
    config = config_of(report.config)
    # Both ratios are None if the run had a target instead of a ratio.
    assert config.ratio == report.ratio.get("requested")
    pruned = report.evaluation["pruned"].keys()
    # With a trimmed vocabulary, only the dense model has perplexities.
    assert pruned and pruned <= report.evaluation["dense"].keys()


@pytest.mark.long
def test_the_report_of_the_demo_is_reproduced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(EXPERIMENTS / "reports" / "demo.json"), "--into", str(tmp_path / "again")])
    assert "Reproduced: " in capsys.readouterr().out
