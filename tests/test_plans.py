"""Each packaged plan agrees with its report in reports/, and gives the results of this report."""

from pathlib import Path

import pytest

from flap.commands.reproduce import config_of
from flap.config import shipped_folder
from flap.method.allocation import GivenPlan, PruningPlan, packaged_plans
from flap.models import Pair
from flap.pipeline import run
from flap.results.report import Report
from flap.results.reproduction import print_reproduction, read_finished

PLANS = packaged_plans()
DOCS = Path(__file__).parents[1] / "docs"


def report_file(name: str) -> Path:
    file = PLANS[name]
    return file.parent / "reports" / file.name


def widths(layers: list[dict[str, int]]) -> list[Pair[int]]:
    return [Pair(layer["kv_heads"], layer["neurons"]) for layer in layers]


def test_every_report_has_a_plan() -> None:
    reports = set(shipped_folder("plans").glob("*/reports/*"))
    assert reports == {report_file(name) for name in PLANS}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_the_one_of_its_report(name: str) -> None:
    report = read_finished(report_file(name)).report
    config = config_of(report.config)
    assert name == f"{config.model.name}/{config.method}-{config.ratio}"
    plan = PruningPlan.load(PLANS[name])
    assert [Pair(*map(len, layer)) for layer in plan.layers] == widths(report.layers)
    assert list(plan.dense) == widths(report.layers_before)


@pytest.mark.parametrize("name", PLANS)
def test_a_report_names_the_commit_that_made_its_numbers(name: str) -> None:
    report = Report.load(report_file(name))
    assert report.evaluation["dense"].keys() == report.evaluation["pruned"].keys()
    assert report.git["commit"] and not report.git["dirty"]


@pytest.mark.parametrize("name", PLANS)
def test_the_documentation_lists_a_plan(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "prune.md").read_text()


def test_a_file_or_folder_comes_before_a_packaged_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = PruningPlan((Pair((0,), (1, 2)),))
    name = next(iter(PLANS))
    mine.save(tmp_path / name / "plan.json")
    monkeypatch.chdir(tmp_path)
    assert GivenPlan.read(name).plan == mine


def test_a_name_that_does_not_exist_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ValueError) as caught:
        GivenPlan.read("smollm2/flap-0.2")
    assert "such as smollm2-135m/flap-0.2, " in str(caught.value)
    with pytest.raises(ValueError) as caught:
        GivenPlan.read("?")
    assert ", ".join(PLANS) in str(caught.value)


@pytest.mark.slow
@pytest.mark.long  # long, because this test calibrates and measures SmolLM2
def test_a_plan_gives_the_numbers_of_its_report(tmp_path: Path) -> None:
    name = "smollm2-135m/flap-0.2"
    old = read_finished(report_file(name))
    run(config_of(old.report.config | {"plan": name, "ratio": None}), tmp_path)
    assert print_reproduction(old, read_finished(tmp_path))
