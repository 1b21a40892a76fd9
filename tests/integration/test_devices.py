"""On any device a model has the statistics, scores, plans, fits, divergences and files that it has on the CPU.

The second device (tests/helpers/second_device.py) refuses what a GPU refuses, so a tensor that was left on the CPU is
found on a machine without one.

Numbers are compared to ROUNDING of the largest. Devices have other kernels, which add in another order: between the CPU
and the second device, which differ in the kernel of the attention, the largest difference was 3e-6. A wrong unit or a
missing bias changes these models' outputs by more than 1e-2. Plans are equal.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import flap
from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import STATISTICS, Calibration, LayerStatistics, collect
from flap.checkpoint.save import make_label, save
from flap.compression import FitReport, LinearCompensation, compress, mask_layer, slice_layer
from flap.config import ModelConfig
from flap.evaluation.perplexity import perplexity, window_losses
from flap.importance import OBS, score_layers
from flap.models import PLACEMENTS, CheckpointSource, PlacedModel, Resident, Spread, find_model
from flap.pipeline import run
from flap.results import Report
from flap.search.divergence import dense_plan
from flap.storage import WorkFolder
from tests.cases import random_model, tokens
from tests.helpers.plans import divergences, with_layer
from tests.helpers.pruned import prune
from tests.helpers.ranks import in_ranks
from tests.helpers.runs import composed, tiny
from tests.models.families import test_families, test_mixtures, test_other_names

ROUNDING = 1e-4
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": test_families.TestLlama.configs["gqa"],
    "qwen3": test_families.TestQwen3.configs["gqa"],
    "gemma3": test_families.TestGemma3.configs["gqa"],
    "gpt_neox": test_other_names.TestGPTNeoX.configs["parallel"],
    "opt": test_other_names.TestOPT.configs["norm-after"],
    "phi3": test_other_names.TestPhi3.configs["gqa"],
    "olmo2": test_families.TestOlmo2.configs["gqa"],
    "mixtral": test_mixtures.TestMixtral.configs["gqa"],
}
KINDS = ["llama", "opt", "phi3", "mixtral"]  # gated, with biases, fused, of experts
METHODS = ["flap", "flap_plus", "wanda_sp", "mag_sp"]
# a quarter of a block alone costs a tiny model hardly more nats than rounding does
LEVELS = "structure.levels=[0.125,0.25,0.5,0.75]"
WINDOWS = tokens()
CPU = torch.device("cpu")

Pruning = Callable[..., tuple[PreTrainedModel, Report]]


def model_on(device: torch.device, family: str) -> PreTrainedModel:
    model = random_model(FAMILIES[family]).to(device)
    model.tie_weights()  # moving a model to a device made in Python gives it new tensors, each by itself
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens(seed=7).to(model.device), use_cache=False).logits


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    largest = max(expected.abs().max().item(), 1e-6)
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=ROUNDING * largest)


def assert_same_tensors(found: PreTrainedModel, expected: PreTrainedModel, device: torch.device) -> None:
    """The same units were kept, and what was fitted is close."""
    tensors, wanted = dict(found.named_parameters()), dict(expected.named_parameters())
    assert tensors.keys() == wanted.keys()
    assert {tensor.device.type for tensor in tensors.values()} == {device.type}
    for name, tensor in tensors.items():
        assert_close(tensor.detach(), wanted[name].detach())


def assert_same_statistics(found: Iterable[LayerStatistics], expected: Iterable[LayerStatistics]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.inverse_power == pytest.approx(other.inverse_power, rel=ROUNDING)
        for mine, theirs in zip(chain(*one.blocks), chain(*other.blocks), strict=True):
            assert mine.num_tokens == theirs.num_tokens
            for name in ("mean_I", "var_I", "msq_I"):
                assert_close(getattr(mine, name), getattr(theirs, name))


@pytest.fixture(scope="module")
def pruned(tokenizer: PreTrainedTokenizerFast, text_file: Path) -> Pruning:
    """pruned(device, family, method): a model pruned by `flap.prune` there, made once, and the report."""

    @cache
    def pruned_on(device: torch.device, family: str, method: str, **options: object) -> tuple[PreTrainedModel, Report]:
        model = model_on(device, family)
        data = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
        return model, flap.prune(model, tokenizer, ratio=0.4, method=method, **data | options)

    return pruned_on


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., CheckpointSource]:
    """sources(device, family, placement): a model in a directory that is to be placed there."""
    root = tmp_path_factory.mktemp("sources")

    def source(device: torch.device, family: str, placement: str) -> CheckpointSource:
        if not (root / family).exists():
            random_model(FAMILIES[family]).save_pretrained(root / family)
            tokenizer.save_pretrained(root / family)
        found = find_model(ModelConfig("tiny", str(root / family), device="cpu"), root / "cache", False)
        return replace(found, device=device, placed=PLACEMENTS[placement])

    return source


@cache
def statistics_on_cpu(family: str) -> list[LayerStatistics]:
    return collect(Resident(model_on(CPU, family)), [WINDOWS], 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics(device: torch.device, family: str, tmp_path: Path) -> None:
    placed = Resident(model_on(device, family))
    found = collect(placed, [WINDOWS], 4)
    assert {block.mean_I.device.type for layer in found for block in chain(*layer.blocks)} == {device.type}
    assert_same_statistics(found, statistics_on_cpu(family))
    STATISTICS.write(found, tmp_path / "statistics.safetensors")
    reread = STATISTICS.read(tmp_path / "statistics.safetensors")
    for layer, again in zip(found, reread, strict=True):
        for block, block_again in zip(chain(*layer.blocks), chain(*again.blocks), strict=True):
            assert torch.equal(block_again.to(device).mean_I.cpu(), block.mean_I.cpu())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[pytest.mark.long] * (one not in KINDS)) for one in FAMILIES]
)
def test_pruning(device: torch.device, family: str, method: str, pruned: Pruning) -> None:
    options = {"overrides": (LEVELS,)} if method == "flap_plus" else {}
    (model, report), (expected, on_cpu) = (pruned(one, family, method, **options) for one in (device, CPU))
    assert report.layers == on_cpu.layers and report.loads_with == on_cpu.loads_with
    assert_same_tensors(model, expected, device)
    assert_close(logits(model), logits(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_its_files_are_read_on_any_device(device: torch.device, family: str, pruned: Pruning, tmp_path: Path) -> None:
    model, _ = pruned(device, family, "flap")
    model.save_pretrained(tmp_path)
    loaded = flap.load(tmp_path)
    assert_close(logits(loaded), logits(pruned(CPU, family, "flap")[0]))
    assert torch.equal(logits(flap.load(tmp_path, device_map={"": device})).cpu(), logits(model).cpu())


def calibration_on(device: torch.device) -> Calibration:
    placed = Resident(model_on(device, "llama"))
    return Calibration(placed, [WINDOWS], 4, collect(placed, [WINDOWS], 4))


def plans(model: PlacedModel) -> list[PruningPlan]:
    """One without two units of the first layer, and one without a few of every layer."""
    whole = dense_plan(model)
    some = LayerPlan((0, 2, 3), tuple(range(0, 56, 2)))
    return [with_layer(whole, 0, some), PruningPlan((some,) * len(whole.layers))]


def fitted(device: torch.device) -> tuple[PreTrainedModel, dict[str, FitReport], list[float]]:
    """The model after a linear fit, the reports, and what the plans diverge with such fits."""
    calibration, fit = calibration_on(device), LinearCompensation()
    nats = divergences(calibration, fit, plans(calibration.model), 48)
    visits = calibration.visit("compress", covariance=True, changing=True)
    reports = compress(calibration.model.adapter, plans(calibration.model)[1], fit, visits, slice_layer)
    return calibration.model.model, reports, nats


@cache
def fitted_on_cpu() -> tuple[PreTrainedModel, dict[str, FitReport], list[float]]:
    return fitted(CPU)


def test_linear_fits_and_the_divergence_with_them(device: torch.device) -> None:
    """Errors and nats are small differences of large numbers: ten times the rounding."""
    (model, reports, nats), (expected, on_cpu, nats_on_cpu) = fitted(device), fitted_on_cpu()
    assert reports.keys() == on_cpu.keys()
    for name, report in reports.items():
        assert report.ridge == on_cpu[name].ridge
        assert report.held_out_error == pytest.approx(on_cpu[name].held_out_error, rel=10 * ROUNDING)
        assert report.held_out_error_of_bias == pytest.approx(on_cpu[name].held_out_error_of_bias, rel=10 * ROUNDING)
    assert_same_tensors(model, expected, device)
    assert nats == pytest.approx(nats_on_cpu, rel=10 * ROUNDING) and min(nats) > 1e-3


def test_scores_of_obs(device: torch.device) -> None:
    found, expected = (
        score_layers(OBS(), calibration.model.adapter, calibration.visit("score", covariance=True))
        for calibration in map(calibration_on, (device, CPU))
    )
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.device == CPU  # where plans are made
            assert_close(one, other)


def test_obs_scores_experts_that_saw_no_token(device: torch.device) -> None:
    """Their channels are constant, so that the bias replaces them exactly."""
    placed = Resident(model_on(device, "mixtral"))
    few = Calibration(placed, [WINDOWS[:1, :2]], 1, [])
    scores = score_layers(OBS(), placed.adapter, few.visit("score", covariance=True, apart=False))
    for layer in scores.layers:
        by_expert = layer.mlp.chunk(len(placed.adapter.mlp(0).members))
        assert any(not score_I.any() for score_I in by_expert) and any(score_I.any() for score_I in by_expert)


def test_a_search(device: torch.device, pruned: Pruning) -> None:
    quick = ("structure.tokens=16", "structure.levels=[0.5]", "compensation.ridge=0.01")
    (model, report), (expected, on_cpu) = (pruned(one, "llama", "flap_plus", overrides=quick) for one in (device, CPU))
    assert report.layers == on_cpu.layers
    assert_same_tensors(model, expected, device)


@cache
def pruned_by_hand(family: str) -> tuple[PruningPlan, PreTrainedModel, float]:
    """On the CPU: the plan, what it leaves, and the perplexity of that."""
    model = model_on(CPU, family)
    plan = prune(model, 0.4)
    return plan, model, perplexity(window_losses(Resident(model), WINDOWS, 4))


def assert_prunes_and_saves(
    placed: PlacedModel, family: str, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> PlacedModel:
    """As the CPU does; return the model after it is saved."""
    plan, expected, expected_perplexity = pruned_by_hand(family)
    device = placed.device
    assert_same_statistics(collect(placed, [WINDOWS], 4), statistics_on_cpu(family))
    assert prune(placed, 0.4) == plan
    after = save(placed, tokenizer, directory, make_label(plan.to_dict(), {}))
    assert after.device == device and after.logits(WINDOWS).device.type == device.type
    assert_close(after.logits(tokens(seed=7)), logits(expected))
    assert perplexity(window_losses(after, WINDOWS, 4)) == pytest.approx(expected_perplexity, rel=ROUNDING)
    assert_same_tensors(flap.load(directory), expected, CPU)
    return after


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
def test_streaming_onto_it(
    device: torch.device,
    family: str,
    sources: Callable[..., CheckpointSource],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    placed = sources(device, family, "stream").open(WorkFolder(tmp_path / "work"))
    with placed.layer(1) as layer:
        assert {parameter.device.type for parameter in layer.parameters()} == {device.type}
    after = assert_prunes_and_saves(placed, family, tokenizer, tmp_path / "pruned")
    whole = after.in_memory()
    assert {parameter.device.type for parameter in whole.model.parameters()} == {device.type}
    assert_close(logits(whole.model), logits(pruned_by_hand(family)[1]))


@pytest.mark.parametrize("waiting", ["layers", "embeddings and layers"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_spread_over_it_and_the_host(
    device: torch.device,
    family: str,
    waiting: str,
    sources: Callable[..., CheckpointSource],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """accelerate dispatches to it. The map is given: it would choose one by the free memory of CUDA devices."""
    source = sources(device, family, "auto")
    ends = {"model.embed_tokens": device, "model.norm": device, "model.rotary_emb": device, "lm_head": device}
    places = ends | {"model.layers.0": device, "model.layers.1": "cpu", "model.layers.2": device}
    if waiting != "layers":
        places |= {"model.embed_tokens": "cpu"}
    placed = Spread(source.read(device_map=places))
    assert placed.device.type == device.type
    assert {parameter.device.type for parameter in placed.layers[1].parameters()} == {"meta"}  # onloaded when needed
    assert_prunes_and_saves(placed, family, tokenizer, tmp_path / "pruned")


@pytest.mark.parametrize(
    ("family", "placement"),
    [
        ("llama", "stream"),
        *(pytest.param("mixtral", placement, marks=pytest.mark.long) for placement in ("auto", "stream")),
        pytest.param("llama", "auto", marks=pytest.mark.long),
    ],
)
def test_flap_plus_at_every_placement(
    device: torch.device,
    family: str,
    placement: str,
    sources: Callable[..., CheckpointSource],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole run: the plan is that of a model in the CPU's memory."""
    places = {"model.embed_tokens": device, "model.norm": device, "model.rotary_emb": device, "lm_head": device}
    places |= {f"model.layers.{i}": device if i % 2 else "cpu" for i in range(4)}

    def spread(source: CheckpointSource, *_: object) -> PlacedModel:
        return Spread(source.read(device_map=places))

    def plan(on: torch.device, where: str) -> PruningPlan:
        source, folder = sources(on, family, where), tmp_path / f"{on.type}-{where}"
        inputs = [one for one in tiny(Path(source.path), text_file) if not one.startswith("eval")]
        arguments = [*inputs, "method=flap_plus", "calibration.num_samples=20", "ratio=0.4", LEVELS]
        arguments += ["eval=[none]", "use_cache=false"]
        with monkeypatch.context() as patch:
            if where == "auto":
                patch.setattr(CheckpointSource, "open", spread)
            run(composed(*arguments), folder, source=source)
        return PruningPlan.load(folder / "plan.json")

    assert plan(device, placement) == plan(CPU, "device")


def run_on(name: str, folder: Path, source: CheckpointSource, arguments: list[str]) -> None:
    """A whole run on a device of this process, which a new one has to register."""
    if name == "second":
        import_module("tests.helpers.second_device")
    run(composed(*arguments), folder, source=replace(source, device=torch.device(name)))


@pytest.mark.long
@pytest.mark.parametrize("placement", ["device", "stream"])
def test_two_processes(
    placement: str, sources: Callable[..., CheckpointSource], text_file: Path, tmp_path: Path
) -> None:
    """Each with the second device: the plan and the numbers of one process on the CPU."""
    source = sources(CPU, "llama", placement)
    options = ["method=flap_plus", "calibration.num_samples=20", "eval=[perplexity,divergence]"]
    options += [f"eval.divergence.datasets=[{text_file}]", "eval.divergence.seq_len=16", "use_cache=false", LEVELS]
    arguments = [*tiny(Path(source.path), text_file), *options, "ratio=0.4"]
    for size, name in ((1, "cpu"), (2, "second")):
        assert in_ranks(size, run_on, name, tmp_path / name, source, arguments) == [0] * size
    reports = [Report.load(tmp_path / name / "report.json") for name in ("cpu", "second")]
    plans = [PruningPlan.load(tmp_path / name / "plan.json") for name in ("cpu", "second")]
    assert plans[0] == plans[1]
    for which in ("dense", "pruned"):
        one, two = (report.evaluation[which] for report in reports)
        assert two == pytest.approx(one, rel=10 * ROUNDING, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "olmo2", "mixtral"])
def test_masking(device: torch.device, family: str) -> None:
    model, expected = model_on(device, family), model_on(CPU, family)
    assert prune(model, 0.4, mask_layer) == prune(expected, 0.4, mask_layer)
    assert_same_tensors(model, expected, device)


def test_a_copy_is_on_the_same_device(device: torch.device) -> None:
    """As the dense model of a sweep and the layers of a search are copied."""
    model = model_on(device, "llama")
    assert_same_tensors(copy.deepcopy(model), model, device)


def test_the_second_device_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    if device == CPU:
        return
    there, here = torch.ones(4, 4).to(device), torch.ones(4, 4)
    index = torch.tensor([0, 2])
    for mixed in (
        lambda: there + here,
        lambda: here @ there,
        lambda: torch.cat([there, here]),
        lambda: here[index.to(device)],
        lambda: there.index_select(0, index),
        lambda: there.clone().index_put_((index,), here[0]),
        lambda: torch.where(there > 0, there, here),
    ):
        with pytest.raises(RuntimeError):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    # numbers and indices may be on the CPU
    assert torch.equal((there * torch.tensor(2.0))[index].cpu(), 2 * here[index])
