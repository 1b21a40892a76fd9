"""Keys of what is stored: each changes with all that its result depends on, and with nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration.images import Images
from flap.compression import BiasCompensation, NoCompensation
from flap.importance import IFV, WIFV
from flap.jobs.facts import inputs
from flap.jobs.prepare import prepare
from tests.helpers.runs import composed, tiny

PLAN = PruningPlan((LayerPlan((0, 1), (3, 5)),) * 4)
CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda")
ON_WINDOWS = {"workspace", "compressed", "pruned", "divergences", "scores", "statistics", "inputs"}
CHANGES = [
    ("ratio=0.5", {"workspace"}),
    ("metric=IFV", {"workspace", "scores"}),
    ("structure=UL-UM", {"workspace"}),
    ("mask_only=true", {"workspace", "compressed", "pruned"}),
    ("compensation=none", {"workspace", "compressed", "pruned", "divergences"}),
    ("calibration.batch_size=2", {"workspace"}),
    ("calibration.num_samples=6", ON_WINDOWS),
    ("seed=7", ON_WINDOWS),
    ("model.dtype=bfloat16", {"workspace", "divergences", "scores", "statistics", "dense", "layer_times", "inputs"}),
    ("eval.perplexity.max_tokens=64", set()),
    ("use_cache=false", set()),
    ("checkpoint.save=false", set()),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES)
def test_a_key_changes_with_what_its_result_depends_on(
    change: str, changed: set[str], model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    arguments = [*tiny(model_dir, text_file), "model.device=cpu", "ratio=0.4"]
    before, after = (keys(tmp_path, *arguments, *more) for more in ((), (change,)))
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_killed_run_is_taken_up_by_the_same_version_on_the_same_device_alone(
    model_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(composed(*tiny(model_dir, text_file), "model.device=cpu"), tmp_path)
    elsewhere = replace(job, source=replace(job.source, device=torch.device("cuda")))
    before = job.keys.workspace
    assert elsewhere.keys.workspace != before
    for version in ("WORKSPACE", "STATISTICS", "SCORES", "DIVERGENCES", "FITS", "WRITTEN"):
        with monkeypatch.context() as patch:
            patch.setattr(f"flap.jobs.keys.{version}_VERSION", 1000)
            assert job.keys.workspace != before


def test_what_a_model_writes_on_another_device_has_statistics_of_its_own(
    model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    for dataset, same in ((str(text_file), True), ("self", False)):
        job = prepare(composed(*tiny(model_dir, text_file), f"calibration.dataset={dataset}"), tmp_path)
        found = [replace(job, source=replace(job.source, device=torch.device(d))).keys.statistics for d in DEVICES]
        assert (found[0] == found[1]) == same


def keys(folder: Path, *arguments: str) -> dict[str, object]:
    job = prepare(composed(*arguments), folder)
    keys, trials = job.keys, job.keys.trials([PLAN], 16)
    return {
        "statistics": keys.statistics, "workspace": keys.workspace, "dense": keys.dense(CPU),
        "layer_times": keys.layer_times(CPU), "divergences": keys.divergences(trials, CPU), "scores": keys.scores(CPU),
        "compressed": keys.compressed(PLAN), "pruned": keys.pruned(PLAN), "inputs": inputs(job),
    }  # fmt: skip


def test_objects_of_two_classes_have_keys_of_their_own(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    config = composed(*tiny(model_dir, text_file))
    found = [prepare(replace(config, metric=metric), tmp_path).keys for metric in (IFV(), WIFV(), IFV())]
    assert found[0].scores(CPU) == found[2].scores(CPU) != found[1].scores(CPU)
    assert found[0].workspace == found[2].workspace != found[1].workspace
    compensations = (BiasCompensation(), NoCompensation())
    found = [prepare(replace(config, compensation=one), tmp_path).keys for one in compensations]
    assert found[0].compressed(PLAN) != found[1].compressed(PLAN)


def test_plans_have_keys_of_their_own(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    keys = prepare(composed(*tiny(model_dir, text_file)), tmp_path).keys
    other = PLAN.with_layer(0, LayerPlan((0,), (3, 5)))
    assert keys.compressed(PLAN) != keys.compressed(other)
    assert keys.trials([PLAN], 16) != keys.trials([other], 16) != keys.trials([other], 32)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("ratio=0.5", True),
        ("structure.rounds=1", True),
        ("structure.round_tokens=32", True),
        ("round_to=8", True),
        ("structure.tokens=32", False),
        ("structure.levels=[0.5]", False),
        ("structure.min_heads=2", True),
        ("structure.min_heads=0", False),  # whole attentions are tried, too
        ("metric.ridge=1.0", False),
        ("compensation.ridge=1.0", False),
        ("structure=AL-AM", False),
    ],
)
def test_scores_of_a_search_serve_what_is_decided_after_them(
    override: str, same: bool, model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    arguments = [*tiny(model_dir, text_file), "model.device=cpu", "ratio=0.4", "method=flap_plus"]
    before, after = (prepare(composed(*arguments, *more), tmp_path).keys.scores(CPU) for more in ((), (override,)))
    assert (before == after) == same


def test_another_text_beside_images_is_another_key(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    images, found = Images("pictures", [{"input_ids": torch.zeros(1, 5)}], ["sha"]), []
    path = tmp_path / "text.txt"
    for text in (text_file.read_text(), text_file.read_text()[::-1]):
        path.write_text(text)
        job = replace(prepare(composed(*tiny(model_dir, path)), tmp_path), images=images)
        found.append(job.keys.statistics)
    assert found[0] != found[1]
