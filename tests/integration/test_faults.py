"""A failing file operation or a kill, at any time of a run, does no damage.

A failed run ends with an error message of one line. No results are lost, and the same command can
be repeated.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cases import tiny_model
from tests.helpers.fault_walks import SCENARIOS, Scenario, walk
from tests.helpers.faults import KINDS, Fault
from tests.helpers.runs import tiny


def faults(step: int, first: int, num_operations: int) -> list[Fault]:
    """Return a fault for every `step`-th file operation.

    The kinds of faults take turns in the order of KINDS, beginning with the kind at index `first`.
    """
    numbers = range(1, num_operations + 1, step)
    return [Fault(number, KINDS[(first + i) % len(KINDS)]) for i, number in enumerate(numbers)]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> list[str]:
    """Return the arguments that all runs share, with the path of a model of two layers."""
    model = tmp_path_factory.mktemp("model") / "two-layers"
    tiny_model("llama-gqa", num_hidden_layers=2).save_pretrained(model)
    tokenizer.save_pretrained(model)
    return tiny(model, text_file)


def each() -> Iterator[Any]:
    """Yield each scenario twice, with different distances between the operations with a fault.

    The first time, every n-th operation gets a fault, where n is the field `step` of the scenario.
    The second time, every operation gets a fault.
    """
    for scenario in SCENARIOS:
        yield pytest.param(scenario, scenario.step, id=scenario.name, marks=pytest.mark.long)
        yield pytest.param(
            scenario, 1, id=f"{scenario.name}-each operation", marks=pytest.mark.thorough
        )


@pytest.mark.parametrize(("scenario", "step"), each())
def test_a_fault(scenario: Scenario, step: int, inputs: list[str]) -> None:
    cases = walk(scenario, inputs, partial(faults, step, SCENARIOS.index(scenario)))
    assert [case for case in cases if case.problems] == []
