"""The command `python -m flap workspace <entity/project> <folder> …`.

The command creates a workspace, which is a page in Weights & Biases (W&B), with plots and tables of
the runs of one or more sweeps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flap.config import how_to_install, shown
from flap.config.paths import check_path
from flap.results.number_texts import is_efficiency
from flap.results.run_folder import RunRecord
from flap.results.study import Study
from flap.results.study_files import read_study
from flap.results.tracking.login import resolve_mode
from flap.storage.atomic_files import write_text
from flap.storage.status import exit_on_error

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

# The sizes and the speed that the horizontal axes of the plots show. Each of them is given by its
# name in the summary of a W&B run.
OVER = (
    "ratio/realised_decoder",
    "parameters/total_after",
    "pruned/efficiency/decode_tokens_per_second",
)
COLUMNS = ("summary:folder", "summary:checkpoint", "config:ratio", "config:method")


def main(arguments: list[str]) -> None:
    """Save a workspace, and print its URL in W&B.

    If W&B is offline, print the path of the file with the workspace instead. On an error, print one
    line and exit with code 1.
    """
    description = (
        "The W&B workspace of sweeps that were run with tracking=wandb; offline, the file "
        "workspace.json."
    )
    parser = argparse.ArgumentParser(prog="python -m flap workspace", description=description)
    parser.add_argument("place", metavar="entity/project", help="where W&B has the runs")
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="folder",
        help="the folder of a sweep: multirun_outputs/<time>",
    )
    given = parser.parse_args(arguments)
    with exit_on_error():
        for folder in given.folders:
            check_path("folder", str(folder))
        print(save_workspace(given.place, given.folders))


def save_workspace(place: str, sweeps: Sequence[Path]) -> str:
    """Save a workspace in W&B, and return its URL.

    If W&B is offline, write the file workspace.json into the folder of the first sweep instead, and
    return the path of this file.

    place: the W&B project of the runs, as "entity/project".

    Raises:
        ValueError: `place` is not of the form "entity/project", a folder cannot be read (see
            `read_study`), or wandb-workspaces is missing.
    """
    entity, _, project = place.partition("/")
    if not entity or not project or "/" in project:
        raise ValueError(f"{shown(place)}: expected an entity and a project of W&B, as mine/flap")
    workspace = _workspace(entity, project, read_study(*sweeps))
    if resolve_mode("auto") == "online":
        return str(workspace.save().url)
    file = sweeps[0] / "workspace.json"
    # `_to_model` returns the specification that `Workspace.save` sends. wandb-workspaces has no
    # public function that returns it.
    spec = workspace._to_model().spec
    write_text(file, spec.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
    return str(file)


def _workspace(entity: str, project: str, study: Study) -> "Workspace":
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ValueError(f"wandb-workspaces is missing; {how_to_install('workspaces')}") from None
    groups = sorted({_group(study, run) for run in study.runs})
    runs = ws.RunsetSettings(
        filters=[ws.Metric("Group").isin(groups), ws.Metric("JobType") == "sweep"],
        pinned_columns=list(COLUMNS),
    )
    name = study.title.replace("×", "x")  # wandb-workspaces treats × as an emoji
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=_sections(study), runset_settings=runs
    )


def _group(study: Study, run: RunRecord) -> str:
    tracking = run.report.config.get("tracking") or {}
    return str(tracking.get("group") or (study.folder / run.folder).resolve().parent.name)


def _sections(study: Study) -> list["Section"]:
    """Return the sections of the workspace.

    There is a section for each size or speed in OVER, with a plot for each measured quality, such
    as an accuracy. If the speed was not measured, it has no section. Two more sections follow. The
    first shows the bar chart of each run, with the kept and removed heads and neurons (or experts)
    of each layer. The second shows what differs between the runs, such as their configs.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    qualities = [name for name in study.measured if not is_efficiency(name)]
    sections = []
    for cost in OVER:
        if cost.startswith("pruned/") and cost.removeprefix("pruned/") not in study.measured:
            continue
        panels = [wr.ScatterPlot(title=name, x=cost, y=f"pruned/{name}") for name in qualities]
        sections.append(ws.Section(name=f"Quality over {cost}", panels=panels, is_open=True))

    pictures = wr.MediaBrowser(media_keys=["picture"])
    differences = wr.RunComparer(diff_only="split")
    sections.append(ws.Section(name="Layers", panels=[pictures], is_open=True))
    sections.append(ws.Section(name="What differs", panels=[differences], is_open=True))
    return sections
