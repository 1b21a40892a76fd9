"""Covariances of channels agree with their definition, however tokens are divided into batches.

Covariances also agree with their definition if statistics of several sets of tokens are merged.
flap computes covariances from co-moments. The co-moment of two channels is the sum, over all
tokens, of the product of the deviations of the two channels from their means. Memory holds the
co-moments of only one layer at a time.
"""

import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.allocation import ULUM, LayerPlan, PruningPlan, price
from flap.method.calibration import Calibration, LayerStatistics, Statistics, Visits
from flap.method.calibration.covariance import Covariance
from flap.method.calibration.symmetric import Symmetric
from flap.method.compression import (
    BiasCompensation,
    LinearCompensation,
    SequentialPruning,
    compress_layers,
    slice_layer,
)
from flap.method.importance import OBS, score_layers
from flap.method.search import PlanDivergence, Search
from flap.method.search.scoring import score_and_try
from flap.models import Pair, Resident, adapt
from flap.storage import NOT_KEPT
from tests.cases import ARCHITECTURES, collect, tiny_model, tokens
from tests.helpers.compressed import whole, with_comoments
from tests.helpers.marks import quick

CPU = torch.device("cpu")
WINDOWS = tokens(windows=12)
HELD_OUT = [0, 5, 10]
FITTING = [i for i in range(12) if i not in HELD_OUT]


def comoments(batches: Sequence[Tensor]) -> Tensor:
    return whole(with_comoments(batches))


def by_definition(activation_TI: Tensor) -> Tensor:
    wide_TI = activation_TI.double()
    centred_TI = wide_TI - wide_TI.mean(0)
    return centred_TI.T @ centred_TI


def assert_close(found_II: Tensor, expected_II: Tensor) -> None:
    """Check that elements (i, j) differ by at most 2e-5 · √(expected_ii · expected_jj)."""
    spread_I = expected_II.diagonal().sqrt()
    assert ((found_II - expected_II).abs() <= 2e-5 * torch.outer(spread_I, spread_I)).all()


def covariance_of(*parts_TI: Tensor) -> Covariance:
    return Covariance.of(*(with_comoments([part_TI]) for part_TI in parts_TI))


def shuffled(num_tokens: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations, a permutation of their channels, and the permuted covariance matrix."""
    generator = torch.Generator().manual_seed(0)
    activation_TI = (
        torch.randn(num_tokens, channels, generator=generator) + torch.arange(channels) % 7
    )
    order_I = torch.randperm(channels, generator=generator)
    return activation_TI, order_I, by_definition(activation_TI[:, order_I]) / num_tokens


@pytest.mark.parametrize("channels", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("sizes", [(50,), (20, 30), (1, 9, 40)])
def test_sets_of_tokens_are_merged_in_any_order_of_the_channels(
    channels: int, sizes: tuple[int, ...]
) -> None:
    activation_TI, order_I, expected_II = shuffled(50, channels)
    covariance = covariance_of(*activation_TI.split(sizes))
    assert covariance.num_tokens == 50
    torch.testing.assert_close(covariance.mean_I, activation_TI.mean(0))
    for dtype in (torch.float32, torch.float64):
        hessian_II = covariance.hessian(order_I, 0.0, dtype)
        assert hessian_II.dtype == dtype and hessian_II.mT.is_contiguous()
        assert_close(hessian_II, expected_II)
    diagonal_I = covariance.hessian(order_I, 0.1, torch.float64).diagonal()
    added_I = 0.1 * expected_II.diagonal().mean().expand(channels)
    torch.testing.assert_close(diagonal_I - expected_II.diagonal(), added_I, rtol=1e-4, atol=0)


def test_variances_and_errors_are_those_of_the_tokens() -> None:
    activation_TI, order_I, expected_II = shuffled(50, 600)
    covariance = covariance_of(*activation_TI.split(30))
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(
        covariance.diagonal()[order_I].double(), expected_II.diagonal(), rtol=1e-5, atol=0
    )
    map_OI = torch.randn(3, 600, generator=generator)
    origin_I = torch.randn(600, generator=generator)
    measured = ((activation_TI - origin_I) @ map_OI.T).square().sum(1).mean().item()
    assert covariance.error(map_OI, origin_I) == pytest.approx(measured, rel=1e-5)


def test_a_set_without_tokens_changes_nothing() -> None:
    activation_TI = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) + 1.0
    known = with_comoments([activation_TI])
    empty = Statistics(0, *torch.zeros(2, 9), Symmetric.zeros(9, CPU))
    every_I = torch.arange(9)
    for parts in ((known, empty), (empty, known)):
        assert_close(
            50 * Covariance.of(*parts).block(every_I, every_I), by_definition(activation_TI)
        )
    nothing = Covariance.of(empty, empty)
    assert not nothing.mean_I.any() and not nothing.block(every_I, every_I).any()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12).filter(
        lambda sizes: sum(sizes) > 1
    ),
    offset=st.sampled_from([0.0, -1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_any_split_into_batches(sizes: list[int], offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    activation_TI = (torch.randn(sum(sizes), 4, generator=generator) + offset) * torch.tensor(
        [0.01, 1.0, 10.0, 100.0]
    )
    assert_close(comoments(activation_TI.split(sizes)), by_definition(activation_TI))


def inputs_of(model: PreTrainedModel, path: str, windows_NT: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.model.layers.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        model(input_ids=windows_NT)
    hook.remove()
    return seen[0].flatten(0, 1)


def assert_part(part: Statistics, activation_TI: Tensor) -> None:
    assert part.num_tokens == len(activation_TI)
    assert_close(whole(part), by_definition(activation_TI))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("architecture", quick(3, ARCHITECTURES))
def test_every_fifth_window_is_held_out(architecture: str, batch_size: int) -> None:
    model = tiny_model(architecture)
    dense = collect(Resident(model), WINDOWS, batch_size=3)
    for i, layer in Calibration(Resident(model), Batch.of(WINDOWS), batch_size, []).visit(
        "score", covariance=True
    ):
        assert layer is not None and layer.inverse_power == pytest.approx(
            dense[i].inverse_power, rel=1e-5
        )
        paths = Pair(f"{i}.self_attn.o_proj", f"{i}.mlp.down_proj")
        for [known], [plain], path in zip(layer.blocks, dense[i].blocks, paths, strict=True):
            assert known.parts is not None and plain.parts is None
            for part, windows in zip(known.parts, (FITTING, HELD_OUT), strict=True):
                assert_part(part, inputs_of(model, path, WINDOWS[windows]))
            torch.testing.assert_close(known.var_I, plain.var_I, rtol=1e-5, atol=0)
            assert known.num_tokens == WINDOWS.numel() and known.comoments is None


def test_scores_are_the_same_without_separate_held_out_windows() -> None:
    model = tiny_model("llama-gqa")
    adapter = adapt(model)
    calibration = Calibration(Resident(model), Batch.of(WINDOWS), 4, [])
    separate = score_layers(OBS(), adapter, calibration.visit("score", covariance=True))
    visits = calibration.visit("score", covariance=True, separate_held_out=False)
    together = score_layers(OBS(), adapter, visits)

    for scores, expected in zip(together.layers, separate.layers, strict=True):
        torch.testing.assert_close(tuple(scores), tuple(expected), rtol=1e-5, atol=0)
    assert together.inverse_power == pytest.approx(separate.inverse_power)
    for _, layer in calibration.visit("score", covariance=True, separate_held_out=False):
        assert layer is not None and all(
            known.comoments and known.parts is None for [known] in layer.blocks
        )


def test_behind_pruned_layers() -> None:
    placed = Resident(tiny_model("llama-gqa"))
    plan = LayerPlan((0, 2), tuple(range(0, 56, 2)))
    for i, known in Calibration(placed, Batch.of(WINDOWS), 4, []).in_sequence(covariance=True):
        if i == 0:
            slice_layer(placed.adapter, 0, plan, BiasCompensation(), known)
        assert known is not None and known.blocks.mlp[0].parts is not None
        if i == 1:
            assert_part(
                known.blocks.mlp[0].parts[0],
                inputs_of(placed.model, "1.mlp.down_proj", WINDOWS[FITTING]),
            )


class OneAtATime(Calibration):
    """A calibration that passes through the layers with the checks of `Watched`."""

    def along(self, *arguments: object, **options: object) -> Visits:
        return Watched(super().along(*arguments, **options))

    def in_sequence(self, *arguments: object) -> Visits:
        return Watched(super().in_sequence(*arguments))


class Watched(Iterator[tuple[int, LayerStatistics | None]]):
    """An iterator over the indices and the statistics of the layers.

    Before it goes to the next layer, it checks that the co-moments of all earlier layers are freed.
    """

    def __init__(self, visits: Visits) -> None:
        self.visits = visits
        self.seen: list[weakref.ref[Symmetric]] = []

    def __next__(self) -> tuple[int, LayerStatistics | None]:
        assert [reference() for reference in self.seen] == [None] * len(self.seen)
        i, observed = next(self.visits)
        assert observed is not None
        parts = [part for [known] in observed.blocks for part in known.parts or ()]
        self.seen += [weakref.ref(part.comoments) for part in parts if part.comoments]
        assert len(self.seen) == 4 * (i + 1)
        return i, observed


def test_one_layer_is_in_memory() -> None:
    """At any time, only one layer has co-moments in memory.

    The test covers scoring, the trials of structure=search (each prunes one block), compression,
    and pruning layer by layer.
    """
    calibration = OneAtATime(Resident(tiny_model("llama-gqa")), Batch.of(WINDOWS), 4, [])
    linear = LinearCompensation()
    adapter = calibration.model.adapter
    plan = PruningPlan((LayerPlan((0, 2), tuple(range(30))),) * 4)
    score_layers(OBS(), adapter, calibration.visit("score", covariance=True))
    score_and_try(
        OBS(), Search(), price(adapter, 0.4), PlanDivergence(calibration, linear), NOT_KEPT
    )
    assert (
        len(
            compress_layers(
                adapter, plan, linear, calibration.visit("compress", covariance=True), slice_layer
            )
        )
        == 8
    )
    another = OneAtATime(Resident(tiny_model("llama-gqa")), Batch.of(WINDOWS), 4, [])
    SequentialPruning(OBS(), ULUM(), linear, slice_layer).prune(
        another, price(another.model.adapter, 0.4)
    )


def test_products_beyond_float32_name_the_layer() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[2].mlp.up_proj.weight.data *= 1e25
    with pytest.raises(ValueError, match=r"activations of layer 2 MLP.* not finite"):
        list(Calibration(Resident(model), Batch.of(WINDOWS), 4, []).visit("score", covariance=True))
