"""The widths of plans side by side: of mixtures, and of models with other numbers of layers."""

from collections.abc import Sequence
from typing import Any

from flap.allocation import PruningPlan
from flap.results.layer_widths import by_layer, overlaps
from flap.results.run_folder import RunRecord


def record(unit: str, kept: Sequence[Sequence[int]], *reported: dict[str, int]) -> RunRecord:
    """What keeps one KV head and these units in each layer; with the widths before and after it is a run."""
    plan = PruningPlan.from_dict({"layers": [{"kv_heads": [0], unit: one} for one in kept]})
    parts = zip(("layers_before", "layers"), reported, strict=False)
    report: dict[str, Any] = {name: [{"kv_heads": 1, **widths}] * len(kept) for name, widths in parts}
    return RunRecord("", plan=plan, report=report and {"evaluation": {}, **report})


NEURONS = record("neurons", [range(0, 24, 2)], {"neurons": 4}, {"neurons": 2})  # of 6 experts with 4 each
EXPERTS = record("experts", [[0, 5]], {"neurons": 4, "experts": 6}, {"neurons": 4, "experts": 2})


def rows(**runs: RunRecord) -> list[tuple[str, ...]]:
    table = overlaps(by_layer(runs))
    return [tuple(table.heads), *(tuple(entry.text for entry in row) for row in table.rows)]


def test_neurons_are_those_of_one_expert_and_whole_experts_are_experts() -> None:
    heads, *found = rows(A=EXPERTS, B=NEURONS, C=record("neurons", [range(6)]))
    assert heads == (
        "layer", "A KV heads", "B KV heads", "overlap with A", "C KV heads", "overlap with A", "A experts", "B neurons",
        "C neurons",
    )  # fmt: skip
    assert found[0] == ("0", "1", "1", "100%", "1", "100%", "2", "2", "1")
    assert not by_layer({"A": EXPERTS, "B": NEURONS}).dense
    assert by_layer({"A": EXPERTS, "B": EXPERTS}).dense == [(1, 6)]


def test_the_sum_stands_below_all_layers() -> None:
    heads, *found = rows(A=record("neurons", [[0], [0, 1]]), B=record("neurons", [[0], [1], [2, 3]]))
    assert heads == ("layer", "A KV heads", "B KV heads", "A neurons", "B neurons")
    assert found[2:] == [("2", "", "1", "", "2"), ("all", "2", "3", "3", "4")]
