"""Covariances: exact for any split into batches, one layer's in memory, nothing left on disk."""

import shutil
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import LayerStatistics, Moments, collect, collect_covariances, collect_layerwise, merge
from flap.calibration.statistics import moments
from flap.compression import BiasCompensation, LinearCompensation, compress, prune_layer
from flap.importance import WIFV, score_layers
from flap.models import adapt
from tests.cases import ARCHITECTURES, tiny_model, tokens

collecting = sys.modules["flap.calibration.collect"]  # the package has a function of that name
WINDOWS = tokens(windows=12)
HELD_OUT = [0, 5, 10]
FITTING = [i for i in range(12) if i not in HELD_OUT]


def comoments(batches: Sequence[Tensor]) -> Tensor:
    found = reduce(merge, [moments(batch, covariance=True) for batch in batches]).comoment_II
    assert found is not None
    return found


def by_definition(activation_TI: Tensor) -> Tensor:
    wide_TI = activation_TI.double()
    centred_TI = wide_TI - wide_TI.mean(0)
    return centred_TI.T @ centred_TI


def assert_close(found_II: Tensor, expected_II: Tensor) -> None:
    """To float32 accuracy, each entry measured by the spread of its two channels."""
    spread_I = expected_II.diagonal().sqrt()
    assert ((found_II - expected_II).abs() <= 2e-5 * torch.outer(spread_I, spread_I)).all()


def test_by_hand() -> None:
    batches = [torch.tensor([[1.0, 10.0]]), torch.tensor([[3.0, 4.0], [5.0, 4.0]])]
    # means 3 and 6: deviations -2 0 2 and 4 -2 -2
    assert comoments(batches).tolist() == [[8.0, -12.0], [-12.0, 24.0]]
    assert moments(batches[0]).comoment_II is None


@pytest.mark.parametrize("channels", [1, 255, 256, 257, 600])
def test_any_number_of_channels(channels: int) -> None:
    activation_TI = torch.randn(50, channels, generator=torch.Generator().manual_seed(0)) + 1.0
    found_II = comoments(activation_TI.split(20))
    assert_close(found_II, by_definition(activation_TI))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 1),
    offset=st.sampled_from([0.0, -1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_any_split_into_batches(sizes: list[int], offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    activation_TI = (torch.randn(sum(sizes), 4, generator=generator) + offset) * torch.tensor([0.01, 1.0, 10.0, 100.0])
    assert_close(comoments(activation_TI.split(sizes)), by_definition(activation_TI))


def inputs_of(model: PreTrainedModel, path: str, windows_NT: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.model.layers.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=windows_NT)
    hook.remove()
    return seen[0].flatten(0, 1)


def assert_part(part: Moments, activation_TI: Tensor) -> None:
    assert part.comoment_II is not None
    assert part.num_tokens == len(activation_TI)
    assert_close(part.comoment_II, by_definition(activation_TI))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_fifth_window_is_held_out(architecture: str, batch_size: int, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    dense = collect(adapt(model), WINDOWS, batch_size=3)
    for i, layer in enumerate(collect_covariances(adapt(model), WINDOWS, batch_size, tmp_path)):
        assert layer.inverse_power == pytest.approx(dense[i].inverse_power, rel=1e-5)
        for known, plain, path in (
            (layer.attention, dense[i].attention, f"{i}.self_attn.o_proj"),
            (layer.mlp, dense[i].mlp, f"{i}.mlp.down_proj"),
        ):
            assert known.parts is not None and plain.parts is None
            for part, windows in zip(known.parts, (FITTING, HELD_OUT), strict=True):
                assert_part(part, inputs_of(model, path, WINDOWS[windows]))
            torch.testing.assert_close(known.var_I, plain.var_I, rtol=1e-5, atol=0)
            assert known.num_tokens == WINDOWS.numel()


def test_behind_pruned_layers() -> None:
    model, plan = tiny_model("llama-gqa"), LayerPlan((0, 2), tuple(range(0, 56, 2)))
    for i, known in collect_layerwise(adapt(model), WINDOWS, 4, covariance=True):
        if i == 0:
            prune_layer(adapt(model), 0, plan, BiasCompensation(), known)
        assert known.mlp.parts is not None
        if i == 1:
            assert_part(known.mlp.parts[0], inputs_of(model, "1.mlp.down_proj", WINDOWS[FITTING]))


def test_each_layer_runs_once_over_every_window(tmp_path: Path) -> None:
    model, seen = tiny_model("llama-gqa"), 0

    def count(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    model.model.layers[3].mlp.register_forward_pre_hook(count)
    collect_covariances(adapt(model), WINDOWS, 4, tmp_path)
    assert seen == len(WINDOWS)


def one_at_a_time(make: Callable[..., LayerStatistics]) -> Callable[..., LayerStatistics]:
    """`make`, which must not be called while co-moments of an earlier call are alive."""
    alive: list[weakref.ref[Tensor]] = []

    def watched(*arguments: Any, **options: Any) -> LayerStatistics:
        assert [reference() for reference in alive] == [None] * len(alive)
        layer = make(*arguments, **options)
        for known in (layer.attention, layer.mlp):
            assert known.parts is not None
            alive.extend(weakref.ref(part.comoment_II) for part in known.parts if part.comoment_II is not None)
        return layer

    return watched


class Walk:
    """Statistics read one layer at a time, by `one_at_a_time`."""

    def __init__(self, statistics: Iterable[LayerStatistics]) -> None:
        self.layers = iter(statistics)
        self.read = one_at_a_time(lambda: next(self.layers))

    def __iter__(self) -> Iterator[LayerStatistics]:
        return self

    def __next__(self) -> LayerStatistics:
        return self.read()


def test_one_layer_is_in_memory_and_nothing_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, plan = adapt(tiny_model("llama-gqa")), PruningPlan((LayerPlan((0, 2), tuple(range(30))),) * 4)
    monkeypatch.setattr(collecting, "_observe", one_at_a_time(collecting._observe))
    statistics = collect_covariances(adapter, WINDOWS, 4, tmp_path)
    score_layers(WIFV(), adapter, range(4), Walk(statistics))
    assert len(compress(adapter, plan, LinearCompensation(), Walk(statistics), prune_layer)) == 8
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"^cache_dir=.*: covariances take 0.0 GB .* choose another folder"):
        collect_covariances(adapt(tiny_model("llama-gqa")), WINDOWS + 1000, 4, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cache_dir=.*file: covariances need a folder that can be written"):
        collect_covariances(adapt(tiny_model("llama-gqa")), WINDOWS, 4, tmp_path / "file")


def test_products_beyond_float32_name_the_layer(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[2].mlp.up_proj.weight.data *= 1e25
    with pytest.raises(ValueError, match=r"activations of layer 2 MLP.* not finite"):
        collect_covariances(adapt(model), WINDOWS, 4, tmp_path)
