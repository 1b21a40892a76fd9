"""Turn a file of prompts and answers into a task of lm-eval.

The model writes an answer, which is scored in the same way as an answer to flap's own task
`sciq_answers`.
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

# An answer ends at the first of these texts. A text that occurs in a right answer is not used.
STOPS = ("\n\n", "\n", ".", ",")
# The maximum number of tokens in an answer is this number, or half the number of bytes in the
# longest right answer, whichever is larger.
FEWEST = 32


class PromptsTask(ConfigurableTask):
    """A task whose documents are the rows of a file.

    The few-shot examples are other questions of the same file with their answers. In a prompt, they
    are earlier turns of the conversation. If several rows have the same question, they give one
    example, with the answer of the first of these rows. If the prompts come from a column
    `messages`, they have no examples.
    """

    def __init__(self, name: str, prompts: Sequence[Prompt]) -> None:
        self.name = name
        self.prompts = prompts
        answers = [str(prompt.answer).strip() for prompt in prompts]
        # stored as JSON, because Arrow would add the keys of all turns to every turn
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
        """Return a task with only these prompts."""
        return PromptsTask(self.name, prompts)

    def fewshot_context(
        self,
        doc: dict[str, str],
        num_fewshot: int,
        *,
        chat_template: Callable[..., str] | None = None,
        **_: Any,
    ) -> str:
        """Return the prompt of a row: the turns of its examples, followed by the row's own turns.

        The turns go through the chat template, or are joined as plain text if there is no template.
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

    answers: the right answers of all rows.
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

    So rows that differ only in white space count as the same question.
    """
    return " ".join(plain_text(json.loads(row["turns"])).split())


def load_prompts(path: str) -> tuple[PromptsTask, str]:
    """Return the task of a file and the origin of its documents.

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
