"""Rows of the embedding beside heads and neurons: one list of all, each at its nats over price."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from flap.allocation import Biases, Bound, Budget, LayerPlan, PruningPlan, bounds_of_shapes
from flap.config import TargetConfig
from flap.importance import Scores
from flap.models import Pair, adapt
from flap.search import Search
from flap.search.rows import Rows, rows_that_stay
from tests.helpers.ratios import budget_of, made_up, model_of, random_scores, tried

IN_MODEL, ROW = 96, 32  # tied rows of the tiny model, and parameters of one
FEWEST, TOKENS = 5, 90  # the others have none
SEARCH = Search(levels=[0.25, 0.5])


def rows_of(scale: float, together: int = 1) -> Rows:
    """Rows whose nats fall over three powers of ten, and the first ones stay."""
    nats_R = scale * torch.logspace(0, -3, TOKENS, dtype=torch.float64)
    nats_R[:FEWEST] = math.inf
    return Rows(nats_R, {"parameters": ROW, "bytes": 4 * ROW}, IN_MODEL, together)


def without_rows(**target: float) -> Budget:
    """The budget of the tiny model, of which no row counts."""
    budget, adapter = budget_of("llama-gqa", 0.0), adapt(model_of("llama-gqa"))
    bounds = bounds_of_shapes(TargetConfig(**target), adapter, budget.layers, 4, Biases(False), 100)
    cost = {"parameters": -IN_MODEL * ROW, "bytes": -4 * IN_MODEL * ROW}
    return replace(budget, bounds=bounds).with_fixed(cost)


def scored(budget: Budget) -> Scores:
    return tried(SEARCH, random_scores(budget), budget, made_up(budget))


def nats_of_units(scores: Scores, budget: Budget) -> list[Pair[torch.Tensor]]:
    """The nats of all units, not over price."""
    plain = replace(budget, bounds=())
    pairs = zip(SEARCH.in_nats(scores, plain), plain.prices, strict=True)
    return [Pair(*(nats_U * price for nats_U, price in zip(*pair, strict=True))) for pair in pairs]


def merged(rows: Rows, scores: Scores, budget: Budget, bound: Bound) -> tuple[int, PruningPlan]:
    """One list of all units and rows in a loop: the best by nats over parameters, each if it fits, else none after it.

    The best unit of each block is first.
    """
    entries = [(one / ROW, ROW, ("row",), r) for r, one in enumerate(rows.nats_R.tolist())]
    for i, (layer, units) in enumerate(zip(nats_of_units(scores, budget), budget.layers, strict=True)):
        for block, nats_U, one in zip(Pair._fields, layer, units, strict=True):
            best = int(nats_U.argmax())
            for u, nats in enumerate(nats_U.tolist()):
                entries.append((math.inf if u == best else nats / one.price, one.price, (i, block), u))
    kept: dict[tuple, list[int]] = {place: [] for _, _, place, _ in entries}
    closed, left = set(), bound.asked - bound.fixed
    for _, price, place, number in sorted(entries, key=lambda entry: -entry[0]):
        if price > left:
            closed.add(place)
        if place not in closed:
            kept[place].append(number)
            left -= price
    layers = [LayerPlan(*(tuple(sorted(kept[i, block])) for block in Pair._fields)) for i in range(len(budget.layers))]
    assert kept["row",] == list(range(len(kept["row",])))
    return len(kept["row",]), PruningPlan(tuple(layers))


@pytest.mark.parametrize(("scale", "parameters"), [*product([1e-3, 0.1, 1.0, 100.0], [25_000, 35_000, 45_000])])
def test_rows_and_units_are_one_list(scale: float, parameters: float) -> None:
    budget, rows = without_rows(parameters=parameters), rows_of(scale)
    scores, [bound] = scored(budget), budget.bounds
    number = rows_that_stay(SEARCH, scores, rows, budget)
    with_them = budget.with_fixed({"parameters": number * ROW})
    plan = SEARCH.allocate(scores, with_them)
    assert (number, plan) == merged(rows, scores, budget, bound)
    assert FEWEST <= number <= TOKENS
    spent = with_them.bounds[0].cost(budget.widths(plan))
    assert parameters - ROW < spent <= parameters or number in (FEWEST, TOKENS)


def test_the_scale_decides_who_leaves() -> None:
    budget = without_rows(parameters=40_000)
    numbers = [rows_that_stay(SEARCH, scored(budget), rows_of(scale), budget) for scale in (1e-9, 0.1, 1.0, 1e9)]
    assert numbers[0] == FEWEST < numbers[1] < numbers[2] < numbers[3] == TOKENS


@pytest.mark.parametrize("scale", [0.03, 0.3, 3.0])
def test_no_other_number_of_rows_costs_fewer_nats(scale: float) -> None:
    """But for what the last unit, which does not fit, leaves of the target."""
    budget, rows = without_rows(parameters=40_000), rows_of(scale)
    scores = scored(budget)
    nats = nats_of_units(scores, budget)

    def lost(number: int) -> float:
        plan = SEARCH.allocate(scores, budget.with_fixed({"parameters": number * ROW}))
        pairs = (zip(*pair, strict=True) for pair in zip(nats, plan.layers, strict=True))
        units = sum(float(nats_U.sum() - nats_U[list(kept)].sum()) for pair in pairs for nats_U, kept in pair)
        return units + float(rows.nats_R[number:].sum())

    number = rows_that_stay(SEARCH, scores, rows, budget)
    largest = max(units.price for layer in budget.layers for units in layer)
    over_price = float(rows.nats_R[number]) / ROW
    assert FEWEST < number < TOKENS
    assert lost(number) <= min(map(lost, range(FEWEST, TOKENS + 1, 4))) + largest * over_price


@pytest.mark.parametrize("target", [{"parameters": 40_000}, {"bytes": 160_000}])
def test_bytes_are_parameters_and_rows_leave_in_groups(target: dict[str, float]) -> None:
    budget = without_rows(**target)
    number = rows_that_stay(SEARCH, scored(budget), rows_of(0.3, together=8), budget)
    one_by_one = rows_that_stay(SEARCH, scored(budget), rows_of(0.3), budget)
    assert number % 8 == 0 and abs(number - one_by_one) <= 8


def test_a_target_that_counts_no_row_keeps_all() -> None:
    """The bytes are met as they are; the cache is not."""
    budget = without_rows(bytes=1e6, kv_cache_bytes=60_000, context=100)
    assert rows_that_stay(SEARCH, scored(budget), rows_of(1e-6), budget) == TOKENS
