"""Zero-shot (or few-shot) accuracy on tasks of lm-eval, with its stock prompts, on the model in memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version

from transformers import PreTrainedTokenizerBase

from flap.evaluation.base import Evaluator, Task
from flap.evaluation.harness import Settings, measure, seeded
from flap.evaluation.zero_shot_documents import FoundTask
from flap.evaluation.zero_shot_tasks import SOURCES, check_shots, expand, find_tasks

PAPER_MEASURES = {  # what the columns of the paper's zero-shot table are; docs/evaluation.md says how that is known
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
SHARED_TEXT = {"boolq": ("boolq-passages",), "hellaswag": ("hellaswag-passages",)}  # made of the same validation split


@dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Accuracies from 0 to 1, higher is better, as `piqa/acc_norm` with `piqa/acc_norm_stderr` beside it.

    tasks: lm-eval tasks, groups or tags. limit: documents a task; None = all of them. num_fewshot: examples in the
    prompt; None = the task's own number, 0 for the paper's seven. batch_size: sequences at a time, or "auto" to find
    out what fits. source: where the documents come from. seed: picks few-shot examples; 1234 is lm-eval's own.
    """

    tasks: list[str] = field(default_factory=lambda: list(PAPER_MEASURES))
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 8
    source: str = "auto"
    seed: int = 1234

    def __post_init__(self) -> None:
        fits = self.batch_size >= 1 if isinstance(self.batch_size, int) else self.batch_size == "auto"
        for name, holds, allowed in (
            ("tasks", bool(self.tasks), "a list of lm-eval tasks, groups or tags, as [piqa]"),
            ("limit", self.limit is None or self.limit >= 1, "null or a whole number >= 1"),
            ("num_fewshot", self.num_fewshot is None or self.num_fewshot >= 0, "null or a whole number >= 0"),
            ("batch_size", fits, "auto or a whole number >= 1"),
            ("source", self.source in SOURCES, f"one of {', '.join(SOURCES)}"),
            ("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
        ):
            if not holds:
                raise ValueError(f"eval.zero_shot.{name}={getattr(self, name)}: expected {allowed}")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        with seeded(self.seed):  # some tasks shuffle their answers as they are read
            found = find_tasks(expand(self.tasks), self.source)
        for one in found:
            check_shots(one, self.num_fewshot or 0)
        return [self._task(one, tokenizer) for one in found]

    def _task(self, found: FoundTask, tokenizer: PreTrainedTokenizerBase) -> Task:
        settings = Settings(self.limit, self.num_fewshot, self.batch_size, self.seed)
        identity = asdict(settings) | {"documents": found.origin, "lm_eval": version("lm_eval")}
        del identity["batch_size"]  # changes speed alone
        run = partial(measure, tokenizer=tokenizer, name=found.name, loaded=found.loaded, settings=settings)
        return Task(found.name, run, identity, found.origin, shares_text_with=SHARED_TEXT.get(found.name, ()))

    def summary(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """`zero_shot/average`: the mean over the tasks of the paper's measure, else of acc_norm, else of acc.

        Nothing where a task is missing or has neither measure: a mean over other tasks cannot be compared.
        """
        found = [self._accuracy(name, numbers) for name in expand(self.tasks)]
        known = [accuracy for accuracy in found if accuracy is not None]
        return {"zero_shot/average": sum(known) / len(known)} if len(known) == len(found) else {}

    @staticmethod
    def _accuracy(name: str, numbers: Mapping[str, float]) -> float | None:
        measures = [PAPER_MEASURES[name]] if name in PAPER_MEASURES else ["acc_norm", "acc"]
        return next((numbers[f"{name}/{one}"] for one in measures if f"{name}/{one}" in numbers), None)
