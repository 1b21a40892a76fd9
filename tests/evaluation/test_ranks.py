"""Several processes measure the same results as one process, bit for bit.

After measuring, each process has all results, not only those that it has measured itself.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
import torch
from torch.nn import Embedding
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedTokenizerFast

from flap.evaluation import Divergence, Measurement
from flap.evaluation.base import Task
from flap.evaluation.suite import prepare_tasks
from flap.evaluation.zero_shot import ZeroShot
from flap.models import PlacedModel
from flap.runs.opened import NoRoomError, Opened, Subject
from flap.runtime import ranks
from flap.runtime.progress import Step, listening
from flap.runtime.temporary_state import replaced
from tests.cases import tiny_model
from tests.helpers.placed import placed_at
from tests.helpers.ranks import in_ranks
from tests.helpers.zero_shot_toys import only_toys

# These toy tasks cover different cases. Each task has six or two documents, and two documents are
# fewer than the three processes of some tests. If each answer choice of a document is a single
# word, lm-eval scores all choices of the document in one forward pass. In some tasks, lm-eval draws
# few-shot examples at random for each document, or the model samples its answers.
TOYS = ["animals", "places", "own_shots", "written", "drawn", "whole"]
Models = tuple[Path, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Models:
    """Save a dense model and a pruned model, which differ in one layer."""
    folders = tmp_path_factory.mktemp("dense"), tmp_path_factory.mktemp("pruned")
    for share, folder in zip((1.0, 0.3), folders, strict=True):
        model = tiny_model("llama-gqa")
        model.model.layers[2].mlp.down_proj.weight.data *= share
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def measure(
    folder: Path,
    models: Models,
    text_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    placement: str,
    fits: bool,
) -> None:
    """Measure the dense and the pruned model in this process, and write the results to a file.

    The file gets the measured results, the number of forward passes that this process has made, and
    the number of times that it has reported progress.

    placement: where the weights are, for example "device" (in memory) or "stream" (on disk).
    fits: whether flap treats the models as small enough to fit into memory.
    """
    own = folder / str(ranks.rank())
    steps = list[Step]()
    calls = list[None]()
    (own / "toys").mkdir(parents=True)
    dense, pruned = (placed_at(placement, one, own / one.name) for one in models)
    room = replaced("fits_in_memory", lambda *_: fits, dense, pruned)
    counting = register_module_forward_hook(
        lambda module, *_: calls.append(None) if type(module) is Embedding else None
    )
    with only_toys(own / "toys"), listening(steps.append), room, counting:
        divergence = Divergence([str(text_file)], seq_len=100, max_tokens=1100, batch_size=3)
        evaluators = {"divergence": divergence, "zero_shot": ZeroShot(TOYS, batch_size=2)}
        tasks = prepare_tasks(evaluators, tokenizer, 128)
        found = measured_by(tasks, dense, pruned)
    (own / "found.json").write_text(json.dumps([*map(asdict, found), len(calls), len(steps)]))


def measured_by(
    tasks: Sequence[Task], dense: PlacedModel, pruned: PlacedModel
) -> tuple[Measurement, Measurement]:
    """Return the measured results of both models.

    A task that needs all weights of a model in memory is left out if they do not fit.
    """
    found = [Measurement(), Measurement()]
    subjects = [Subject(Opened(lambda model=model: model)) for model in (dense, pruned)]
    references = {}
    for task in tasks:
        with suppress(NoRoomError):
            if task.reference is None:
                found[0] |= task.run(subjects[0].for_task(task))
            else:
                references[task.name] = task.reference(subjects[0].for_task(task))
    for task in tasks:
        with suppress(NoRoomError):
            compared = [references[task.name]] if task.reference is not None else []
            found[1] |= task.run(subjects[1].for_task(task), *compared)
    return found[0], found[1]


class Measured(NamedTuple):
    """The results that a process has after measuring, and how much work this process has done."""

    measurements: list[Measurement]
    calls: int  # how many forward passes this process has made
    steps: int  # how many times this process has reported progress


def measured_by_rank(folder: Path, rank: int) -> Measured:
    *found, calls, steps = json.loads((folder / str(rank) / "found.json").read_text())
    return Measured([Measurement(**measurement) for measurement in found], calls, steps)


class Inputs(NamedTuple):
    models: Models
    text_file: Path
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def inputs(models: Models, text_file: Path, tokenizer: PreTrainedTokenizerFast) -> Inputs:
    return Inputs(models, text_file, tokenizer)


MeasureAlone: TypeAlias = Callable[[str, bool], Measured]


@pytest.fixture(scope="module")
def measure_alone(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> MeasureAlone:
    """Return a function that measures the two models in one process.

    The function takes the arguments `placement` and `fits`, and passes them to `measure`.
    """

    def measured(placement: str, fits: bool) -> Measured:
        folder = tmp_path_factory.mktemp("one")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in each process of a run with several processes
        measure(folder, *inputs, placement, fits)
        torch.set_num_threads(threads)
        return measured_by_rank(folder, 0)

    return measured


# `make test` leaves this long test out, because test_same_result.py measures perplexities and
# divergences in several processes, too.
@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "placement", "fits"),
    [
        (2, "device", True),
        (3, "device", True),
        (2, "stream", True),
        (3, "stream", False),
    ],
)
def test_several_processes_measure_what_one_does(
    size: int,
    placement: str,
    fits: bool,
    measure_alone: MeasureAlone,
    inputs: Inputs,
    tmp_path: Path,
) -> None:
    expected = measure_alone(placement, fits)
    codes = in_ranks(size, measure, tmp_path, *inputs, placement, fits)
    assert codes == [0] * size
    for rank in range(size):
        found = measured_by_rank(tmp_path, rank)
        assert found.measurements == expected.measurements
        assert found.calls < 0.8 * expected.calls
        assert bool(found.steps) == (rank == 0)  # only rank 0 shows progress bars

    tasks = set()
    for measurement in expected.measurements:
        tasks |= {name.partition("/")[0] for name in measurement.numbers}
    assert ({"drawn", "whole"} <= tasks) == fits
