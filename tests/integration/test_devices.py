"""On any device a model has the statistics, plans and files that it has on the CPU, wherever its layers wait.

Whole runs are in test_same_result.py; each family is under the contract of tests/models/families.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import flap
from flap.checkpoint.save import make_label, save
from flap.config import ModelConfig
from flap.method.allocation import PruningPlan
from flap.method.calibration import Calibration, LayerStatistics, collect
from flap.method.importance import OBS, score_layers
from flap.models import PLACEMENTS, CheckpointSource, PlacedModel, Resident, Spread, find_model
from tests.cases import random_model, tokens
from tests.helpers.pruned import prune
from tests.models.families import test_families, test_mixtures

ROUNDING = 1e-4  # see test_same_result.py
FAMILIES = {"llama": test_families.TestLlama.configs["gqa"], "mixtral": test_mixtures.TestMixtral.configs["gqa"]}
WINDOWS = tokens()
CPU = torch.device("cpu")
Sources = Callable[[torch.device, str], CheckpointSource]


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
def sources(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Sources:
    """sources(device, placement): a model in a directory that is to be placed there."""
    root = tmp_path_factory.mktemp("sources")

    random_model(FAMILIES["llama"]).save_pretrained(root / "llama")
    tokenizer.save_pretrained(root / "llama")
    found = find_model(ModelConfig("tiny", str(root / "llama"), device="cpu"), root / "cache", False)

    return lambda device, placement: replace(found, device=device, placed=PLACEMENTS[placement])


@cache
def statistics_on_cpu() -> list[LayerStatistics]:
    return collect(Resident(model_on(CPU, "llama")), [WINDOWS], 4)


def test_a_model_in_memory_is_pruned_and_its_files_are_read(
    device: torch.device, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    models = [model_on(place, "llama") for place in (device, CPU)]
    data = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
    reports = [flap.prune(model, tokenizer, ratio=0.4, **data) for model in models]
    assert reports[0].layers == reports[1].layers
    assert_same_tensors(models[0], models[1], device)
    models[0].save_pretrained(tmp_path)
    assert_close(logits(flap.load(tmp_path)), logits(models[1]))
    assert torch.equal(logits(flap.load(tmp_path, device_map={"": device})).cpu(), logits(models[0]).cpu())


def test_obs_scores_experts_that_saw_no_token(device: torch.device) -> None:
    """Their channels are constant, so that the bias replaces them exactly."""
    placed = Resident(model_on(device, "mixtral"))
    few = Calibration(placed, [WINDOWS[:1, :2]], 1, [])
    scores = score_layers(OBS(), placed.adapter, few.visit("score", covariance=True, apart=False))
    for layer in scores.layers:
        by_expert = layer.mlp.chunk(len(placed.adapter.mlp(0).members))
        assert any(not score_I.any() for score_I in by_expert) and any(score_I.any() for score_I in by_expert)


@cache
def pruned_on_cpu() -> tuple[PruningPlan, PreTrainedModel]:
    model = model_on(CPU, "llama")
    return prune(model, 0.4), model


def assert_prunes_and_saves(placed: PlacedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> PlacedModel:
    """As the CPU does; return the model after it is saved."""
    plan, expected = pruned_on_cpu()
    assert_same_statistics(collect(placed, [WINDOWS], 4), statistics_on_cpu())
    assert prune(placed, 0.4) == plan
    after = save(placed, tokenizer, directory, make_label(plan.to_dict(), {}))
    assert after.device == placed.device and after.logits(WINDOWS).device.type == placed.device.type
    assert_close(after.logits(tokens(seed=7)), logits(expected))
    assert_same_tensors(flap.load(directory), expected, CPU)
    return after


@pytest.mark.parametrize("embeddings", ["on it", "on the host"])
def test_spread_over_it_and_the_host(
    device: torch.device, embeddings: str, sources: Sources, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """accelerate dispatches to it. The map is given: it would choose one by the free memory of CUDA devices."""
    source = sources(device, "auto")
    places = dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head", "model.layers.0", "model.layers.2"), device)
    places |= {"model.embed_tokens": device if embeddings == "on it" else "cpu", "model.layers.1": "cpu"}
    placed = Spread(source.read(device_map=places))
    assert placed.device.type == device.type
    assert {parameter.device.type for parameter in placed.layers[1].parameters()} == {"meta"}  # onloaded when needed
    assert_prunes_and_saves(placed, tokenizer, tmp_path / "pruned")


def test_a_copy_is_on_the_same_device(device: torch.device) -> None:
    """As the dense model of a sweep and the layers of a search are copied."""
    model = model_on(device, "llama")
    assert_same_tensors(copy.deepcopy(model), model, device)


def test_the_second_device_refuses_what_a_gpu_refuses(device: torch.device) -> None:
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
