"""`flap workspace` saves a W&B workspace online, or writes a file if W&B is offline."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb_workspaces.workspaces as ws

from flap.results.tracking import workspace
from flap.results.tracking.workspace import main
from tests.helpers.study_grid import PERPLEXITY, SPEED, Cell, add_cell, altered


@pytest.fixture
def sweep(tmp_path: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a sweep with two finished runs and a failed run, and set W&B to offline mode."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "mine"
    for ratio in (0.2, 0.5):
        numbers = {PERPLEXITY: 30.0 + ratio, "piqa/acc": 0.6, SPEED: 40.0}
        add_cell(folder, altered(report, ratio, numbers, numbers), Cell("WIFV", "AL-AM", ratio))
    add_cell(folder, None, Cell("IFV", "AL-AM", 0.7, state="failed", error="ValueError"))
    return folder


def test_offline_the_workspace_is_a_file_with_comparisons(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["team/flap", str(sweep)])
    assert capsys.readouterr().out == f"{sweep / 'workspace.json'}\n"
    text = (sweep / "workspace.json").read_text()
    section = json.loads(text)["section"]
    sections = {one["name"]: one["panels"] for one in section["panelBankConfig"]["sections"]}
    sections.pop("Hidden Panels", None)
    costs = ("ratio/realised_decoder", "parameters/total_after", f"pruned/{SPEED}")
    assert list(sections) == [*(f"Quality over {cost}" for cost in costs), "Layers", "What differs"]
    for cost in costs:
        axes = [
            (panel["config"]["xAxis"], panel["config"]["yAxis"])
            for panel in sections[f"Quality over {cost}"]
        ]
        assert axes == [
            (f"summary:{cost}", f"summary:pruned/{name}") for name in (PERPLEXITY, "piqa/acc")
        ]
    assert [panel["viewType"] for panel in sections["What differs"]] == ["Run Comparer"]
    runs = json.dumps(section["runSets"])
    assert (
        '"mine"' in runs
        and '"sweep"' in runs
        and "summary:checkpoint" in runs
        and str(sweep) not in text
    )


def test_online_it_is_saved(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[ws.Workspace] = []
    monkeypatch.setattr(workspace, "resolve_mode", lambda mode: "online")
    monkeypatch.setattr(
        ws.Workspace, "save", lambda self: saved.append(self) or SimpleNamespace(url="https://it")
    )
    main(["team/flap", str(sweep)])
    assert [(one.entity, one.project) for one in saved] == [("team", "flap")] and saved[
        0
    ].name.startswith("Pruning ")
    assert capsys.readouterr().out == "https://it\n" and not (sweep / "workspace.json").exists()


def test_the_group_of_the_config_wins_over_the_sweeps_folder(sweep: Path) -> None:
    for path in sweep.glob("*/report.json"):
        report = json.loads(path.read_text())
        path.write_text(
            json.dumps(report | {"config": report["config"] | {"tracking": {"group": "ours"}}})
        )
    main(["team/flap", str(sweep)])
    runs = json.dumps(json.loads((sweep / "workspace.json").read_text())["section"]["runSets"])
    assert '"ours"' in runs


@pytest.mark.parametrize("place", ["flap", "/flap", "team/", "a/b/c"])
def test_a_place_that_is_none_is_one_line(
    sweep: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([place, str(sweep)])
    assert stopped.value.code == 1
    assert (
        capsys.readouterr().err
        == f"error: {place}: expected an entity and a project of W&B, as mine/flap\n"
    )
