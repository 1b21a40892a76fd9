"""Whatever operation on files fails, and wherever a run is killed: one line, nothing lost, and it can be run again."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cases import tiny_model
from tests.helpers.fault_walks import SCENARIOS, Scenario, walk
from tests.helpers.faults import KINDS, Fault
from tests.helpers.runs import tiny

QUICK = ("prune and save", "fill the cache")  # in `make test`


def faults(step: int, first: int, num_operations: int) -> list[Fault]:
    """A fault at each step-th operation, with the kinds in turn from `first` on."""
    return [
        Fault(number, KINDS[(first + i) % len(KINDS)]) for i, number in enumerate(range(1, num_operations + 1, step))
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, text_file: Path) -> list[str]:
    """The arguments of all runs: a model of two layers."""
    model = tmp_path_factory.mktemp("model") / "two-layers"
    tiny_model("llama-gqa", num_hidden_layers=2).save_pretrained(model)
    tokenizer.save_pretrained(model)
    return tiny(model, text_file)


def every_third(scenario: Scenario, chosen: bool, num_operations: int) -> list[Fault]:
    """Of the faults at each step-th operation each third one, which are of all kinds too, or all others."""
    found = faults(scenario.step, SCENARIOS.index(scenario), num_operations)
    return [fault for i, fault in enumerate(found) if (i % 3 == 0) == chosen]


def each() -> Iterator[Any]:
    for scenario, third in product(SCENARIOS, (True, False)):
        marks = () if third and scenario.name in QUICK else pytest.mark.long
        yield pytest.param(scenario, third, id=f"{scenario.name}-{'third' if third else 'others'}", marks=marks)


@pytest.mark.parametrize(("scenario", "third"), each())
def test_a_fault(scenario: Scenario, third: bool, inputs: list[str]) -> None:
    cases = walk(scenario, inputs, partial(every_third, scenario, third))
    assert [case for case in cases if case.problems] == []


@pytest.mark.thorough
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_fault_at_each_operation(scenario: Scenario, inputs: list[str]) -> None:
    cases = walk(scenario, inputs, partial(faults, 1, SCENARIOS.index(scenario)))
    assert [case for case in cases if case.problems] == []
