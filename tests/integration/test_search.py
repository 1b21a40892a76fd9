"""Complete runs with structure=search reach the requested ratio, and resume after a kill.

The runs also delete the copies of layers that the search makes and prunes for its trials.
"""

import copy
import gc
import signal
import weakref
from itertools import groupby
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.models import LoadedSource, Resident
from flap.pipeline import run
from flap.runs.preparation import prepare
from flap.runs.stages import allocate, observe, open_dense, score
from tests.cases import tiny_model
from tests.helpers.killed import start
from tests.helpers.ratios import assert_meets
from tests.helpers.runs import composed, tensors_of

LEVELS = "structure.levels=[0.125,0.25,0.5,0.75]"
ALONE = 4 * (
    3 + 4
    # ALONE is the number of trials of the search. A trial prunes only the KV heads or only the
    # neurons of one layer. For each of the 4 layers, 3 trials remove KV heads, and 4 trials remove
    # neurons.
)


@pytest.fixture
def arguments(base: list[str], tmp_path: Path) -> list[str]:
    return [*killable(base, "device"), f"cache_dir={tmp_path / 'cache'}"]


def test_another_ratio_takes_the_walk_that_compresses_alone(
    arguments: list[str], tmp_path: Path
) -> None:
    plans = []
    for cache, passes in (("true", 2), ("true", 1), ("false", 2)):
        ratio = 0.3 if not plans else 0.5
        config = composed(*arguments, f"ratio={ratio}", f"use_cache={cache}", "resume=false")
        assert run(config, tmp_path / "run").weight_passes == passes
        plans.append((tmp_path / "run" / "plan.json").read_text())
    assert plans[1] == plans[2] != plans[0]


def test_the_model_stays_dense_and_no_copy_stays(
    arguments: list[str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search tries plans on pruned copies of layers, and deletes the copies.

    The search changes no layer of the model itself.

    At most two copies are in memory at a time: a copy of the layer that has just run, and a copy of
    the next layer.
    """
    model = tiny_model("llama-gqa").to(torch.bfloat16)
    copies = []
    alive = []
    before = copy.deepcopy(model.state_dict())
    layers = list(model.model.layers)
    copy_layer = Resident.copy_layer

    def counted(self: Resident, index: int) -> torch.nn.Module:
        made = copy_layer(self, index)
        copies.append(weakref.ref(made))
        alive.append(sum(one() is not None for one in copies))
        return made

    monkeypatch.setattr(Resident, "copy_layer", counted)
    config = composed(*arguments, "ratio=0.4", "use_cache=false")
    run = prepare(config, tmp_path / "run", LoadedSource(model, tokenizer))
    placed = open_dense(run)
    assert_meets(allocate(run, score(run, placed, observe(run, placed))), model, 0.4)
    assert len(copies) == ALONE and max(alive) <= 2
    gc.collect()
    assert not any(one() for one in copies)
    assert list(model.model.layers) == layers
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert not any(
        "forward" in vars(module) or module._forward_pre_hooks for module in model.modules()
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, base: list[str]
) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, steps = start(folder, killable(base, "device"))
    assert code == 0
    return folder / "run", in_order(steps)


def killable(base: list[str], placement: str) -> list[str]:
    arguments = [one for one in base if not one.startswith("eval")]
    options = ["method=flap_plus", "calibration.num_samples=20", "ratio=0.4", LEVELS]
    return [*arguments, *options, "eval=[none]", "cache_dir=cache", f"model.placement={placement}"]


def in_order(steps: list[str]) -> list[str]:
    """Return the names of the score and compress steps, without repetitions.

    If several sets of windows pass through a layer, each set gives a step with the same name.
    """
    return [step for step, _ in groupby(steps) if step.split()[0] in ("score", "compress")]


@pytest.mark.parametrize(
    ("placement", "killed_at", "number"),
    [
        # This run is killed while the search measures plans that prune a single layer.
        pytest.param("device", "score 2", 5, marks=pytest.mark.long),
        pytest.param("stream", "score 2", 5, marks=pytest.mark.long),
        # This run is killed while it compresses the layers. The resumed run reads the scores and
        # the measurements of the search from the disk.
        ("stream", "compress 2", 1),
    ],
)
def test_a_killed_search_goes_on(
    placement: str,
    killed_at: str,
    number: int,
    undisturbed: tuple[Path, list[str]],
    base: list[str],
    tmp_path: Path,
) -> None:
    arguments, (expected, whole) = killable(base, placement), undisturbed
    assert whole == [f"{stage} {i}" for stage in ("score", "compress") for i in range(4)]
    layer = whole.index(killed_at)
    code, steps = start(tmp_path, arguments, killed_at, number)
    assert (code, in_order(steps)) == (-signal.SIGKILL, whole[: layer + 1])
    code, steps = start(tmp_path, arguments)
    assert (code, in_order(steps)) == (0, whole[layer:])
    for name in ("plan.json", "checkpoint/config.json"):
        assert (tmp_path / "run" / name).read_text() == (expected / name).read_text()
    found, tensors = map(tensors_of, (tmp_path / "run", expected))
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensors[name]) for name in tensors
    )
    assert not [
        path for path in (tmp_path / "cache" / "streams").iterdir() if path.suffix != ".lock"
    ]
