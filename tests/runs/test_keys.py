"""The cache key of a result changes if and only if an input of this result changes."""

import importlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.compression import BiasCompensation, NoCompensation
from flap.method.importance import IFV, WIFV
from flap.method.vocabulary import Trim
from flap.method.vocabulary.source import TrimmedSource
from flap.runs import keys
from flap.runs.preparation import prepare
from tests.helpers.plans import with_layer
from tests.helpers.runs import composed

PLAN = PruningPlan((LayerPlan((0, 1), (3, 5)),) * 4)
ON_WINDOWS = {"workspace", "compressed", "pruned", "scores", "statistics", "inputs", "run"}
CHANGES = [
    ("ratio=0.5", {"workspace", "run"}),
    ("metric=IFV", {"workspace", "scores", "run"}),
    # With metric=taylor, the key of the statistics changes, too, because they contain gradients.
    ("metric=taylor", {"workspace", "scores", "statistics", "run"}),
    ("structure=UL-UM", {"workspace", "run"}),
    ("mask_only=true", {"workspace", "compressed", "pruned", "run"}),
    ("compensation=none", {"workspace", "compressed", "pruned", "run"}),
    ("calibration.batch_size=2", {"workspace", "run"}),
    ("calibration.num_samples=6", ON_WINDOWS),
    ("seed=7", ON_WINDOWS),
    ("model.dtype=bfloat16", ON_WINDOWS | {"dense"}),
    ("eval.perplexity.max_tokens=64", set()),
    ("use_cache=false", set()),
    ("checkpoint.save=false", {"run"}),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES)
def test_a_key_changes_with_its_result(
    change: str, changed: set[str], base: list[str], tmp_path: Path
) -> None:
    arguments = [*base, "model.device=cpu", "ratio=0.4", "metric=OBS"]
    before, after = (all_keys(tmp_path, *arguments, *more) for more in ((), (change,)))
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_trained_model_has_the_key_of_its_training(base: list[str], tmp_path: Path) -> None:
    training = ["recover=full", "recover.tokens=2432", "recover.seq_len=16"]
    found = [
        all_keys(tmp_path, *base, *training, *more)
        for more in ((), ("recover.learning_rate=5e-3",))
    ]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {
        "workspace",
        "pruned",
        "inputs",
        "run",
    }


def test_a_training_with_fewer_tokens_has_another_teacher(base: list[str], tmp_path: Path) -> None:
    training = ["recover=full", "recover.tokens=2432", "recover.seq_len=16"]
    run = prepare(composed(*base, *training), tmp_path)
    trims = replace(run, choices=replace(run.choices, vocabulary=Trim()))
    trimmed = replace(run, source=TrimmedSource.__new__(TrimmedSource))
    assert keys.recovery(trims) == keys.recovery(trimmed) != keys.recovery(run)


def test_a_killed_run_is_taken_up_by_the_same_version_on_the_same_device_alone(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(composed(*base, "model.device=cpu"), tmp_path)
    elsewhere = replace(run, source=replace(run.source, device=torch.device("cuda")))
    before = keys.workspace(run)
    assert keys.workspace(elsewhere) != before
    monkeypatch.setattr("flap.runs.keys.VERSION", 1000)
    assert keys.workspace(run) != before


def test_what_is_computed_on_another_device_is_kept_apart(base: list[str], tmp_path: Path) -> None:
    run = prepare(composed(*base, "metric=OBS"), tmp_path)
    cpu, gpu = (
        replace(run, source=replace(run.source, device=torch.device(name)))
        for name in ("cpu", "cuda")
    )
    assert keys.statistics(cpu) != keys.statistics(gpu)
    assert keys.scores(cpu) != keys.scores(gpu)
    assert keys.windows(cpu) == keys.windows(gpu)


def test_times_are_of_one_gpu_and_threads(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(composed(*base), tmp_path)
    found = []
    on_gpu = replace(run, source=replace(run.source, device=torch.device("cuda:0")))
    for gpu, threads in (("L4", 1), ("H100", 1), ("H100", 2)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, gpu=gpu: gpu)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(keys.timed(on_gpu, PLAN))
    assert all(one != other for one, other in itertools.pairwise(found))


def all_keys(folder: Path, *arguments: str) -> dict[str, object]:
    run = prepare(composed(*arguments), folder)
    return {
        "statistics": keys.statistics(run),
        "workspace": keys.workspace(run),
        "dense": keys.dense(run),
        "scores": keys.scores(run),
        "compressed": keys.compressed(run, PLAN),
        "pruned": keys.pruned(run, PLAN),
        "inputs": keys.inputs(run),
        "run": run.key,
    }


def test_objects_of_two_classes_and_plans_have_keys_of_their_own(
    base: list[str], tmp_path: Path
) -> None:
    config = composed(*base, "method=flap_plus")
    runs = [prepare(replace(config, metric=metric), tmp_path) for metric in (IFV(), WIFV(), IFV())]
    for one, other, again in (
        [keys.scores(run) for run in runs],
        [keys.workspace(run) for run in runs],
    ):
        assert one == again != other
    compensations = (BiasCompensation(), NoCompensation())
    found = [prepare(replace(config, compensation=one), tmp_path) for one in compensations]
    assert keys.compressed(found[0], PLAN) != keys.compressed(found[1], PLAN)
    other = with_layer(PLAN, 0, LayerPlan((0,), (3, 5)))
    assert keys.compressed(found[0], PLAN) != keys.compressed(found[0], other)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("ratio=0.5", True),
        ("round_to=8", True),
        ("structure.tokens=32", False),
        ("structure.levels=[0.5]", False),
        ("structure.min_heads=2", True),
        ("metric.ridge=1.0", False),
        ("compensation.ridge=1.0", False),
        ("structure=AL-AM", False),
    ],
)
def test_scores_of_a_search_serve_later_choices(
    override: str, same: bool, base: list[str], tmp_path: Path
) -> None:
    arguments = [*base, "model.device=cpu", "ratio=0.4", "method=flap_plus"]
    runs = (prepare(composed(*arguments, *more), tmp_path) for more in ((), (override,)))
    before, after = (keys.scores(run) for run in runs)
    assert (before == after) == same


MINE = """from dataclasses import dataclass

import torch

from flap.method.importance import Metric


@dataclass(frozen=True)
class Base(Metric):
    def score(self, weight_OI, statistics):
        return torch.arange(weight_OI.shape[1]).float()
"""


def test_scores_of_an_edited_metric_are_others(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mymetric.py").write_text(
        "from mybase import Base\n\n\nclass Mine(Base):\n    pass\n"
    )
    config = composed(*base, "structure=search", "structure.tokens=64")
    found = []
    for source in (MINE, MINE, MINE.replace("float()", "float().flip(0)")):
        (tmp_path / "mybase.py").write_text(source)
        for name in ("mybase", "mymetric"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        config.metric = importlib.import_module("mymetric").Mine()
        found.append(keys.scores(prepare(config, tmp_path / "run")))
    assert found[0] == found[1] != found[2]
