"""The Pareto fronts of a study agree with small examples computed by hand.

A study contains the runs of a sweep, which are called cells.
"""

from pathlib import Path

import pytest
from pandas import DataFrame

from flap.results.pareto import COSTS, front, points
from flap.results.plots import draw
from flap.results.series import series_of
from flap.results.study_files import read_study
from tests.helpers.study_grid import PERPLEXITY, SPEED, Cell, Report, add_cell, altered

PARAMETERS, BYTES, SPEEDS = COSTS


def front_of(
    places: list[tuple[float, float]], *lower_is_better: bool
) -> list[tuple[float, float]]:
    found = front(DataFrame(places, columns=["cost", "quality"]), *lower_is_better)
    return list(found.itertuples(index=False, name=None))


def test_on_the_front_is_what_no_other_beats_in_both() -> None:
    places = [(3, 10), (1, 30), (2, 20), (2, 25), (1, 31), (4, 10), (5, 12)]

    def best(*lower_is_better: bool) -> list[tuple[float, float]]:
        return front_of(places, *lower_is_better)

    assert best(True, True) == [(1, 30), (2, 20), (3, 10)]
    # If a lower first number (cost) and a higher second number (quality) are better, (1, 31) is
    # best in both numbers.
    assert best(True, False) == [(1, 31)]
    # If a higher first number (speed) and a lower second number (loss) are better, (5, 12) is the
    # fastest point, and (4, 10) is the fastest with the lowest loss.
    assert best(False, True) == [(5, 12), (4, 10)]


def test_nothing_has_no_front() -> None:
    assert front_of([], True, True) == []


def test_what_differs_by_rounding_alone_is_equal() -> None:
    places = [(100.2, 50.0), (100.0, 60.0), (110.0, 49.999), (120.0, 40.0)]
    assert front_of(places, True, True) == [(100.2, 50.0), (120.0, 40.0)]


def test_a_point_is_the_mean_of_the_seeds_and_the_dense_model_is_one(
    tmp_path: Path, report: Report
) -> None:
    dense = {PERPLEXITY: 20.0, SPEED: 40.0}
    speedup = f"{SPEED}_ratio"
    for seed, perplexity, speed in ((0, 30.0, 1.25), (1, 34.0, 1.5)):
        pruned = altered(report, 0.2, dense, {PERPLEXITY: perplexity, speedup: speed})
        add_cell(tmp_path, pruned, Cell("WIFV", "AL-AM", 0.2, seed=seed))
    # The cell at ratio 0.5 is slower and worse than the cells at 0.2, so it is not on the front.
    # The cell at 0.7 gives no point, because its perplexity is not finite.
    for ratio, perplexity in (
        (0.5, 50.0),
        (0.7, None),
    ):
        add_cell(
            tmp_path,
            altered(report, ratio, dense, {PERPLEXITY: perplexity, speedup: 1.125}),
            Cell("IFV", "AL-AM", ratio),
        )
    study = read_study(tmp_path)
    series = series_of(study)
    assert list(points(study, series, PERPLEXITY, SPEEDS).itertuples(index=False, name=None)) == [
        (1.125, 50.0, "IFV AL-AM 0.5", 0),
        (1.375, 32.0, "WIFV AL-AM 0.2", 1),
        (1.0, 20.0, "dense", -1),
    ]
    # The second cost, the size in bytes, was not measured in the runs.
    assert [cost.measured(study) for cost in COSTS] == [True, False, True]
    caption = {plot.name: plot.caption for plot in draw(study)}["speed"]
    assert caption.endswith(f"On the front of {PERPLEXITY}: WIFV AL-AM 0.2, dense.")


# pandas gives this warning if columns are added one by one to a frame with a hundred columns.
@pytest.mark.filterwarnings("error::pandas.errors.PerformanceWarning")
def test_parameters_are_those_of_the_whole_model(tmp_path: Path, report: Report) -> None:
    many = {f"task{i}/acc": 0.5 for i in range(100)}
    add_cell(
        tmp_path,
        altered(report, 0.2, {PERPLEXITY: 20.0} | many, {PERPLEXITY: 30.0}),
        Cell("WIFV", "AL-AM", 0.2),
    )
    study = read_study(tmp_path)
    costs = points(study, series_of(study), PERPLEXITY, PARAMETERS).cost.tolist()
    assert costs == [report["parameters"]["total_after"], report["parameters"]["total_before"]]
