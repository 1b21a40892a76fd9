"""structure=search as a whole: what it finds, what it keeps for the next start, and what it leaves behind."""

import copy
import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.allocation import PruningPlan, Search
from flap.cache import Cache
from flap.calibration import LayerStatistics, collect_covariances
from flap.compression import Divergence, Stack
from flap.importance import score_layers
from flap.job import Job
from flap.models import adapt
from flap.pipeline import run
from flap.reporting import Report
from flap.reporting.notices import notices
from flap.searching import search
from flap.stages import build_stages, check_budget, read_calibration
from tests.allocation.oracle import assert_meets
from tests.cases import tiny_model
from tests.runs import composed, tiny

ALONE = 4 * (3 + 4)  # layers, of each: 1, 2, 3 of 4 KV heads and four levels of neurons
MakeJob = Callable[..., Job]


@pytest.fixture
def job_of(model_dir: Path, text_file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> MakeJob:
    """What pruning a tiny model takes, by overrides of the command line; jobs of one test share a cache."""

    def make(*overrides: str, model: PreTrainedModel | None = None, kept: bool = True) -> Job:
        config = composed(*tiny(model_dir, text_file), "method=flap_plus", "calibration.num_samples=20", *overrides)
        stages, adapter = build_stages(config), adapt(model or tiny_model("llama-gqa"))
        calibration = read_calibration(config, stages, tokenizer, None)
        budget, report = check_budget(adapter, stages, config), Report.start(asdict(config))
        return Job(adapter, budget, stages, calibration, config, report, Cache(tmp_path / "cache", kept), {"model": 1})

    return make


def found(job: Job) -> tuple[PruningPlan, list[LayerStatistics]]:
    """The plan, and the statistics that it was searched with."""
    assert job.calibration is not None and isinstance(job.stages.structure, Search)
    known = list(collect_covariances(job.adapter, job.calibration.tokens_NT, 8, job.cache.root))
    scores = score_layers(job.stages.metric, job.adapter, range(4), known)
    return search(job, job.stages.structure, scores, known), known


def nats(job: Job, plan: PruningPlan, known: list[LayerStatistics]) -> float:
    """The plan's divergence on the windows that the search saw."""
    assert job.calibration is not None
    divergence = Divergence(job.adapter, job.calibration.tokens_NT[::5])
    return divergence.stack(plan, job.stages.compensation, known).nats


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, int]]:
    """Layer, block and removed units of every trial, in the order in which they were measured."""
    seen: list[tuple[int, str, int]] = []
    measure = Divergence.of

    def noted(self: Divergence, layer: int, trial, *rest) -> float:  # type: ignore[no-untyped-def]
        seen.append((layer, trial.block, trial.removed))
        return measure(self, layer, trial, *rest)

    monkeypatch.setattr(Divergence, "of", noted)
    return seen


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("architecture", ["llama-mha", "qwen2-gqa-tied", "qwen3-gqa"])
def test_rounds_lower_the_divergence_and_keep_the_ratio(architecture: str, ratio: float, job_of: MakeJob) -> None:
    model = tiny_model(architecture)
    jobs = [job_of(f"ratio={ratio}", f"structure.rounds={rounds}", model=model) for rounds in (0, 2)]
    (first, known), (last, _) = map(found, jobs)
    assert nats(jobs[1], last, known) <= nats(jobs[1], first, known)
    for plan in (first, last):
        assert_meets(plan, model, ratio)


def test_rounds_do_move_budget(job_of: MakeJob) -> None:
    jobs = [job_of("ratio=0.5", f"structure.rounds={rounds}") for rounds in (0, 2)]
    (first, known), (last, _) = map(found, jobs)
    divergences = jobs[1].report.search_nats
    assert divergences == sorted(divergences, reverse=True) and len(divergences) >= 2
    assert divergences[0] == pytest.approx(nats(jobs[1], first, known), rel=1e-6)
    assert divergences[-1] == pytest.approx(nats(jobs[1], last, known), rel=1e-6)
    assert divergences[-1] < divergences[0]
    assert f"its last one by {divergences[-1]:.4f}" in " ".join(notices(jobs[1].report))


@pytest.mark.parametrize("compensation", ["none", "bias", "linear"])
def test_blocks_of_neurons_and_least_heads_are_kept_to(compensation: str, job_of: MakeJob) -> None:
    job = job_of("ratio=0.3", "round_to=8", "structure.min_heads=3", f"compensation={compensation}")
    plan, _ = found(job)
    assert all(len(layer.kv_heads) >= 3 and len(layer.neurons) % 8 == 0 for layer in plan.layers)
    block = 8 * job.budget.layers[0].neuron_price
    assert abs(job.budget.total - job.budget.kept(plan) - job.budget.to_remove) <= block


def test_nothing_leaves_at_ratio_0(job_of: MakeJob) -> None:
    plan, _ = found(job_of("ratio=0"))
    assert all(len(layer.kv_heads) == 4 and len(layer.neurons) == 56 for layer in plan.layers)


def test_the_model_stays_dense_and_no_copy_stays(job_of: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pruned models at most are there at a time: the best, and the one that is tried."""
    model, alive = tiny_model("llama-gqa").to(torch.bfloat16), [0]
    before, kind = copy.deepcopy(model.state_dict()), type(model.model.layers[0])
    stack = Divergence.stack

    def count() -> int:
        return sum(type(one) is kind for one in gc.get_objects())

    def counted(self: Divergence, *given) -> Stack:  # type: ignore[no-untyped-def]
        made = stack(self, *given)
        alive.append(count() - dense)
        return made

    gc.collect()
    dense = count()
    monkeypatch.setattr(Divergence, "stack", counted)
    plan, _ = found(job_of("ratio=0.4", model=model))
    assert_meets(plan, model, 0.4)
    assert count() == dense and max(alive) == 2 * 4
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


def test_the_cache_changes_no_plan(job_of: MakeJob, measured: list[object]) -> None:
    plans = [found(job_of("ratio=0.4", "structure.rounds=1", kept=kept))[0] for kept in (False, True, True)]
    assert plans[0] == plans[1] == plans[2]
    half = len(measured) // 2  # the third read all that the second had measured
    assert half > ALONE and measured[:half] == measured[half:]


@pytest.mark.parametrize("calls", [5, ALONE + 6])
def test_a_killed_search_goes_on_at_its_layer(
    calls: int, job_of: MakeJob, measured: list[tuple[int, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = found(job_of("ratio=0.4", "structure.rounds=1", kept=False))
    in_order = measured.copy()
    measured.clear()
    noted = Divergence.of

    def killed(*given) -> float:  # type: ignore[no-untyped-def]
        if len(measured) == calls:
            raise KeyboardInterrupt
        return noted(*given)

    job = job_of("ratio=0.4", "structure.rounds=1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Divergence, "of", killed)
        found(job)
    assert measured == in_order[:calls]
    measured.clear()
    plan, _ = found(job)
    assert plan == whole
    layer = in_order[calls][0]
    start = max(n for n, one in enumerate(in_order[: calls + 1]) if n == 0 or in_order[n - 1][0] != layer)
    assert measured == in_order[start:]


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("mask_only=true", 0),
        ("calibration.propagate=pruned", 0),
        ("ratio=0.5", 0),
        ("round_to=8", 0),
        ("compensation=bias", ALONE),
        ("compensation.ridge=1.0", ALONE),
        ("metric.ridge=1.0", ALONE),
        ("structure.tokens=32", ALONE),
        ("structure.levels=[0.3,0.6]", 4 * (2 + 2)),
        ("seed=1", ALONE),
    ],
)
def test_blocks_alone_are_measured_again_where_it_matters(
    override: str, again: int, job_of: MakeJob, measured: list[object]
) -> None:
    found(job_of("ratio=0.4", "structure.rounds=0"))
    assert len(measured) == ALONE
    found(job_of("ratio=0.4", "structure.rounds=0", override))
    assert len(measured) == ALONE + again


@pytest.mark.parametrize(("override", "again"), [("mask_only=true", False), ("ratio=0.5", True), ("round_to=8", True)])
def test_around_another_plan_everything_is_measured_again(
    override: str, again: bool, job_of: MakeJob, measured: list[tuple[int, str, int]]
) -> None:
    found(job_of("ratio=0.4", "structure.rounds=1"))
    before = len(measured)
    found(job_of("ratio=0.4", "structure.rounds=1", override))
    assert {layer for layer, *_ in measured[before:]} == (set(range(4)) if again else set())


def test_a_run_in_bfloat16(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    config = composed(*tiny(model_dir, text_file), "method=flap_plus", "model.dtype=bfloat16", "ratio=0.4")
    report = run(config, tmp_path)
    assert report.ratio["realised_decoder"] == pytest.approx(0.4, abs=0.02)
