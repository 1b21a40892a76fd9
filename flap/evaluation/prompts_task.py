"""Turn a file of prompts and answers into a task of lm-eval.

The answers that the model writes are scored in the same way as the answers to `sciq_answers`, a
task that flap defines in lm-eval's format (tasks/sciq_answers.yaml).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from flap.config import shown
from flap.data import Prompt, read_prompts
from flap.data.dialogue import plain_text
from flap.storage import digest

# An answer of the model ends where one of these strings begins. A string that occurs in a right
# answer of the file is not used.
STOPS = ("\n\n", "\n", ".", ",")
# The maximum number of tokens in an answer of the model is FEWEST, or half the number of bytes in
# the longest right answer, whichever is larger.
FEWEST = 32


class PromptsTask(ConfigurableTask):
    """A task of lm-eval whose documents are the rows of a file.

    The few-shot examples are other questions of the same file with their right answers. In a
    prompt, the examples are earlier turns of the conversation. If several rows have the same
    question, only the first of these rows can be an example. If a prompt of the file comes from a
    column `messages`, which has whole conversations, no prompt of the file has examples.
    """

    def __init__(self, name: str, prompts: Sequence[Prompt]) -> None:
        self.name = name
        self.prompts = prompts
        answers = [str(prompt.answer).strip() for prompt in prompts]
        # stored as JSON, because a table of Arrow would add the keys of all turns to every turn
        turns = [json.dumps(prompt.messages) for prompt in prompts]
        rows = Dataset.from_dict({"turns": turns, "answer": answers})
        self.example_of: dict[str, dict[str, str]] = {}
        for row in rows:
            self.example_of.setdefault(_question(row), row)
        self.most_shots = len(self.example_of) - 1
        if any(prompt.conversation for prompt in prompts):
            self.most_shots = 0

        splits = {"test": rows, "examples": Dataset.from_list([*self.example_of.values()])}
        super().__init__(config=_config(name, splits, answers))

    def of(self, prompts: Sequence[Prompt]) -> "PromptsTask":
        """Return a task with only the given prompts."""
        return PromptsTask(self.name, prompts)

    def fewshot_context(
        self,
        doc: dict[str, str],
        num_fewshot: int,
        *,
        chat_template: Callable[..., str] | None = None,
        **_: Any,
    ) -> str:
        """Return the prompt for a row: the turns of few-shot examples, followed by the row's turns.

        `chat_template` formats the turns. If it is None, the turns are joined as plain text.
        """
        turns = json.loads(doc["turns"])
        same_question = self.example_of[_question(doc)]
        number = min(num_fewshot, self.most_shots)
        for shot in self.sampler.sample(number, eval_doc=same_question):
            answer = {"role": "assistant", "content": shot["answer"]}
            turns = [*json.loads(shot["turns"]), answer, *turns]
        return plain_text(turns) if chat_template is None else chat_template(turns)


def _config(name: str, splits: dict[str, Dataset], answers: Sequence[str]) -> dict[str, Any]:
    """Return the config of a task in the format of lm-eval's YAML files.

    splits: a dict from the name of each split to its rows. answers: the right answers of all rows,
        which determine where an answer of the model ends, and how long it may be.
    """
    longest = max(len(answer.encode()) for answer in answers)
    return {
        "task": name,
        "custom_dataset": lambda **_: splits,
        "test_split": "test",
        "fewshot_split": "examples",
        "output_type": "generate_until",
        "doc_to_text": "turns",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "until": [stop for stop in STOPS if not any(stop in answer for answer in answers)],
            "do_sample": False,
            "max_gen_toks": max(FEWEST, longest // 2),
        },
        "filter_list": [
            {
                "name": "none",
                "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "ignore_case": True,
                "ignore_punctuation": True,
                "aggregation": "mean",
                "higher_is_better": True,
            }
        ],
    }


def _question(row: dict[str, str]) -> str:
    """Return the question of a row, with each sequence of white space replaced by one space.

    Rows that differ only in white space therefore have the same question.
    """
    return " ".join(plain_text(json.loads(row["turns"])).split())


def load_prompts(path: str) -> tuple[PromptsTask, str]:
    """Return the task that a file of prompts defines, and a text that describes the file.

    Raises:
        ValueError: the file cannot be read, or a row has no prompt or no answer.
    """
    prompts = read_prompts(path, "tasks")
    for number, prompt in enumerate(prompts, start=1):
        if prompt.answer is None:
            expected = "'answer', or 'messages' whose last is the assistant's"
            raise ValueError(
                f"tasks={shown(path)}: row {number} has no answer; expected {expected}"
            )
    name = Path(path).name
    task = PromptsTask(name, prompts)
    origin = f"{name}, {len(prompts)} prompts"
    if not task.most_shots:
        origin += ", each asked alone"
    content = digest([(one.messages, one.answer) for one in prompts])
    return task, f"{origin} (sha256 {content})"
