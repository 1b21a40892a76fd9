"""Write prompts from SciQ for calibration, and documents from SciQ for evaluation.

    python experiments/answers/sciq.py sciq.jsonl held_out.jsonl contaminated.jsonl

sciq.jsonl: prompts for calibration. Each prompt has five questions with their passages and right
answers, and a sixth question with its passage, but without an answer.
`calibration.dataset={sciq.jsonl: {weight: 1, chat_template: false}}` reads these prompts.

held_out.jsonl: documents whose passage and question share no 13 consecutive words with any prompt
of sciq.jsonl. `eval.generation.tasks=[held_out.jsonl] eval.generation.chat_template=false` asks
these questions in the format of the task `sciq_answers`, after five examples from other documents
of this file.

contaminated.jsonl: the documents that sciq.jsonl contains, in the format of held_out.jsonl. A model
that was calibrated on sciq.jsonl has read these documents. Measure on these documents only to see
the effect of contamination.

Do not measure a model that was calibrated on sciq.jsonl on `sciq_answers`, because sciq.jsonl
contains most documents of this task with their answers.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flap.data.named_texts import for_evaluation, rows
from flap.data.overlap import word_runs

TURNS = 6  # number of documents in a calibration prompt; the last one has no answer
# In the task sciq_answers, the model's answer ends at the first of these characters.
STOPS = (".", ",")


class Document(NamedTuple):
    """A question about a passage, with the right answer."""

    passage: str
    question: str
    answer: str

    @property
    def asked(self) -> str:
        """The prompt of this document in the format of `sciq_answers`."""
        return f"{self.passage.lstrip()}\nQuestion: {self.question}\nAnswer:"

    @property
    def runs(self) -> set[tuple[str, ...]]:
        """All sequences of 13 consecutive words in this document.

        A passage, a question or a prompt with fewer than 13 words is a single sequence. Two
        documents overlap if they share a sequence.
        """
        return word_runs(self.passage) | word_runs(self.question) | word_runs(self.asked)

    @property
    def can_be_answered(self) -> bool:
        """Whether the right answer has no full stop and no comma, which end a model's answer."""
        return not any(stop in self.answer for stop in STOPS)


def documents() -> list[Document]:
    """Return the documents of SciQ's validation split that have a passage."""
    columns = ["support", "question", "correct_answer"]
    split, _ = rows("sciq-passages", "sciq", "allenai/sciq", columns)
    return [
        Document(row["support"], row["question"], row["correct_answer"])
        for row in split
        if row["support"].strip()
    ]


def calibration_prompt(turns: list[Document]) -> dict[str, Any]:
    """Return a prompt: documents as messages of a conversation, without the last answer."""
    messages = []
    for document in turns:
        messages.append({"role": "user", "content": document.asked})
        messages.append({"role": "assistant", "content": document.answer})
    return {"messages": messages[:-1]}


def evaluation_prompts(chosen: Iterable[Document]) -> list[dict[str, Any]]:
    """Return a prompt with its answer for each document whose answer has no full stop or comma."""
    return [
        {"prompt": document.asked, "answer": document.answer}
        for document in chosen
        if document.can_be_answered
    ]


def write(path: str, prompts: list[dict[str, Any]]) -> None:
    """Write each prompt as a line of JSON, and print the number of prompts."""
    Path(path).write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    print(f"{path}: {len(prompts)} prompts")


def main(calibration: str, held_out: str, contaminated: str) -> None:
    """Write sciq.jsonl, held_out.jsonl and contaminated.jsonl to the three given paths."""
    known = documents()
    for_calibration = [one for one in known if not for_evaluation(one.passage)]
    # Each prompt needs TURNS documents, so the last documents are left out if they do not fill a
    # prompt.
    read = for_calibration[: len(for_calibration) // TURNS * TURNS]
    starts = range(0, len(read), TURNS)
    write(calibration, [calibration_prompt(read[start : start + TURNS]) for start in starts])

    read_runs = set[tuple[str, ...]]().union(*(document.runs for document in read))
    others = [one for one in known if for_evaluation(one.passage)]
    write(held_out, evaluation_prompts(one for one in others if read_runs.isdisjoint(one.runs)))
    write(contaminated, evaluation_prompts(read))


if __name__ == "__main__":
    main(*sys.argv[1:])
