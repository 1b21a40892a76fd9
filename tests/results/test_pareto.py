"""The Pareto fronts of a study, by numbers that can be followed by hand."""

from pathlib import Path

from flap.results.pareto import COSTS, Point, front, fronts, points
from flap.results.plots import draw
from flap.results.series import series_of
from flap.results.study_table import tabulate
from flap.results.sweep_folders import read_study
from tests.helpers.study_grid import PERPLEXITY, SPEED, Report, add_cell, altered

PARAMETERS, BYTES, SPEEDS = COSTS


def named(*places: tuple[float, float]) -> list[Point]:
    return [Point(cost, quality, f"{cost:g} {quality:g}", 0) for cost, quality in places]


def test_on_the_front_is_what_no_other_beats_in_both() -> None:
    models = named((3, 10), (1, 30), (2, 20), (2, 25), (1, 31), (4, 10), (5, 12))
    assert front(models, True, True) == named((1, 30), (2, 20), (3, 10))
    assert front(models, True, False) == named((1, 31))  # accuracy: nothing dearer is better
    assert front(models, False, True) == named((5, 12), (4, 10))  # speed: 5 is the fastest
    assert front([], True, True) == []


def test_a_point_is_the_mean_of_the_seeds_and_the_dense_model_is_one(tmp_path: Path, report: Report) -> None:
    dense = {PERPLEXITY: 20.0, SPEED: 40.0}
    for seed, perplexity, speed in ((0, 30.0, 50.0), (1, 34.0, 60.0)):
        pruned = altered(report, 0.2, dense, {PERPLEXITY: perplexity, SPEED: speed})
        add_cell(tmp_path, pruned, "WIFV", "AL-AM", 0.2, seed=seed)
    for ratio, perplexity in ((0.5, 50.0), (0.7, None)):  # slower than at 0.2, and worse; not finite
        add_cell(tmp_path, altered(report, ratio, dense, {PERPLEXITY: perplexity, SPEED: 45.0}), "IFV", "AL-AM", ratio)
    study = read_study(tmp_path)
    series = series_of(study)
    assert points(study, series, PERPLEXITY, SPEEDS) == [
        (45.0, 50.0, "IFV AL-AM 0.5", 0), (55.0, 32.0, "WIFV AL-AM 0.2", 1), (40.0, 20.0, "dense", None),
    ]  # fmt: skip
    assert fronts(study, series, [PERPLEXITY], SPEEDS) == f"On the front of {PERPLEXITY}: WIFV AL-AM 0.2, dense."
    assert [cost.measured(study) for cost in COSTS] == [True, False, True]  # no bytes were measured
    assert "WIFV AL-AM 0.2, dense." in {plot.name: plot.caption for plot in draw(study)}["speed"]


def test_speeds_of_several_moments_are_relative_to_one_dense_speed(tmp_path: Path, report: Report) -> None:
    for metric, moment, ratio in (("IFV", 30.0, 1.5), ("WIFV", 40.0, 1.25), ("wanda", 90.0, 1.0)):
        pruned = {PERPLEXITY: 30.0, SPEED: moment * ratio, f"{SPEED}_ratio": ratio}
        dense = {PERPLEXITY: 20.0, SPEED: moment}
        add_cell(tmp_path, altered(report, 0.2, dense, pruned), metric, "AL-AM", 0.2)
    study = read_study(tmp_path)
    assert [point.cost for point in points(study, series_of(study), PERPLEXITY, SPEEDS)] == [60, 50, 40, 40]
    assert study.results[f"pruned/{SPEED}"].tolist() == [45, 50, 90]
    table = tabulate(study, "dense")
    [row] = table.rows
    assert row[table.heads.index(SPEED)].key == 40


def test_parameters_are_those_of_the_whole_model(tmp_path: Path, report: Report) -> None:
    add_cell(tmp_path, altered(report, 0.2, {PERPLEXITY: 20.0}, {PERPLEXITY: 30.0}), "WIFV", "AL-AM", 0.2)
    study = read_study(tmp_path)
    pruned, dense = points(study, series_of(study), PERPLEXITY, PARAMETERS)
    assert (pruned.cost, dense.cost) == (report["parameters"]["total_after"], report["parameters"]["total_before"])
