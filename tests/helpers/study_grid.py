"""Create the folders of a sweep from the report of one real run, without running the sweep.

A cell is one run of the sweep.
"""

import copy
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from flap.evaluation import Measurement
from flap.evaluation.result_files import Results
from flap.storage import Artefact, Label
from flap.storage.status import State, write_status

PERPLEXITY = "wikitext2/perplexity@128"
AVERAGE = "zero_shot/average"
SPEED = "efficiency/decode_tokens_per_second"
METRICS = ("IFV", "WIFN", "WIFV")
STRUCTURES = ("AL-AM", "UL-UM")
RATIOS = (0.1, 0.2, 0.3, 0.5)
CRASH = (
    'ValueError: calibration.num_samples=128: <script>document.title="owned"</script> | and more'
)

Report = dict[str, Any]


def altered(
    report: Report, ratio: float, dense: dict[str, float], pruned: dict[str, float | None]
) -> Report:
    """Return a copy of a report with another ratio, and other measured results of both models."""
    other = copy.deepcopy(report)
    other["config"]["ratio"] = ratio
    other["ratio"]["realised_decoder"] = ratio + 0.0004
    other["evaluation"] = {"dense": dense, "pruned": pruned}
    other["better"] = {
        name: "lower" if name == PERPLEXITY else "higher"
        for name in pruned
        if "_stderr" not in name
    }
    return other


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the options with which it was started, and its state.

    error: the message of a failed run.
    overrides: further options.
    """

    metric: str
    structure: str
    ratio: float
    seed: int = 0
    state: State = "finished"
    error: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"tiny_{self.metric}_{self.structure}_r{self.ratio}_s{self.seed}"

    def config(self, report: Report | None) -> dict[str, Any]:
        """Return the config of the cell.

        It is the config in `report` (empty if there is no report), with the cell's own options.
        """
        config = dict(report["config"]) if report else {}
        config["model"] = {"name": "tiny"}
        config["method"] = "flap"
        config["ratio"] = self.ratio
        config["seed"] = self.seed
        for override in self.overrides:
            key, _, value = override.partition("=")
            section, _, name = key.partition(".")
            config[section] = {name: value} if name else value
        return config

    def command_line(self) -> list[str]:
        return [
            f"metric={self.metric}",
            f"structure={self.structure}",
            f"ratio={self.ratio}",
            f"seed={self.seed}",
            *self.overrides,
        ]


def add_cell(sweep: Path, report: Report | None, cell: Cell) -> Path:
    """Write the files that Hydra and a run leave in the folder of a cell. Return the folder."""
    number = len(list(sweep.glob("*/")))
    folder = sweep / f"{number}_{cell.name}"
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    config = cell.config(report)
    choices = {"metric": cell.metric, "structure": cell.structure, "method": "flap"}
    # These YAML files contain JSON, because every JSON text is also valid YAML.
    (hydra / "config.yaml").write_text(json.dumps(config))
    (hydra / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    (hydra / "overrides.yaml").write_text(json.dumps(cell.command_line()))

    write_status(folder, cell.state, cell.error)
    (folder / "flap.log").write_text("what happened\n")
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report | {"config": config}))
        (folder / "report.md").write_text("# tiny\n")
    return folder


def keep_documents(
    folder: Path,
    numbers: dict[str, float],
    documents: dict[str, list[float]] | None = None,
    data: str = "the same",
) -> None:
    """Write the measured results of a run, and the values of these results for single documents.

    documents: the values for single documents, by the name of the result. If None, each result r
        gets the values r - 1 and r + 1, for two documents.
    """
    values = documents or {}
    if documents is None:
        for name, value in numbers.items():
            if "_stderr" not in name:
                values[name] = [value - 1, value + 1]
    key = {"task": "all", "data": data, "plan": ""}
    measured = Artefact(Measurement(numbers, values), Label("evaluate"))
    Results(folder / "evaluation.json").of({}).keep(key, measured)


def add_command(sweep: Path, *task: str) -> None:
    """Write multirun.yaml, Hydra's record of the command line of a sweep."""
    overrides = {"hydra": ["hydra.mode=MULTIRUN"], "task": list(task)}
    sweeper = {
        "_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "params": None,
    }
    record = {"overrides": overrides, "sweeper": sweeper, "runtime": {"config_sources": []}}
    (sweep / "multirun.yaml").write_text(json.dumps({"hydra": record}))


def full_grid(sweep: Path, report: Report) -> Path:
    """Create 24 finished cells with measured results, a failed cell and an unfinished cell."""
    sweep.mkdir()
    add_command(
        sweep,
        "metric=IFV,WIFN,WIFV",
        "structure=AL-AM,UL-UM",
        "ratio=0.1,0.2,0.3,0.5",
        "run_name=a b",
    )
    dense: dict[str, Any] = {
        PERPLEXITY: 20.0,
        AVERAGE: 0.6,
        SPEED: 40.0,
        "piqa/acc": 0.7,
        "piqa/acc_stderr": 0.011,
    }
    for i, (metric, structure, ratio) in enumerate(product(METRICS, STRUCTURES, RATIOS)):
        pruned = {
            PERPLEXITY: 20.0 * 10 ** (4 * ratio) + i,
            AVERAGE: 0.6 - ratio / 2 - i / 1000,
            f"{SPEED}_ratio": 1 + ratio,
            "piqa/acc": 0.7 - ratio / 2 + i / 1000,
            "piqa/acc_stderr": 0.0123,
        }
        of_cell = altered(report, ratio, dense, pruned)
        folder = add_cell(sweep, of_cell, Cell(metric, structure, ratio))
        keep_documents(folder, pruned)
    add_cell(sweep, None, Cell("WIFV", "UL-UM", 0.7, state="failed", error=CRASH))
    add_cell(sweep, None, Cell("IFV", "UL-UM", 0.6, state="running"))
    return sweep
