"""Read one run from its folder: its choices, its state, and its report."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from flap.config.resolvers import model_name
from flap.evaluation.errors import Difference, paired, with_averages
from flap.evaluation.result_files import RESULTS, DocumentValues, Results
from flap.results.configs import Config, FlatConfig, flat, flatten, is_setting
from flap.results.report import Report
from flap.storage import read_yaml
from flap.storage.status import STATUS, read_status

FILES = ("report.md", "report.json", "layers.png", "flap.log")


@dataclass(frozen=True)
class RunRecord:
    """One run. A choice is None if the files do not say it."""

    folder: str  # relative to the folder of the study, as the page links to it
    state: str = "finished"  # finished, failed, damaged, unfinished
    error: str = ""  # why there is no result
    files: tuple[str, ...] = ()
    overrides: FlatConfig = field(default_factory=dict)
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    structure: str | None = None
    ratio: float | None = None
    requested: str = ""  # "0.2" or "target.bytes=2e8"; runs with equal requests are compared
    seed: int | None = None
    # other overrides that differ between the runs of a study: "calibration.num_samples=32"
    options: str = ""
    report: Report = field(default_factory=lambda: Report({}))  # empty if there is no result
    documents: DocumentValues = field(default_factory=dict)  # values of the pruned model
    sweep: str = ""  # the name of the sweep, in a study of several sweeps
    config: FlatConfig = field(default_factory=dict)

    @property
    def number(self) -> str:
        """The job number with which Hydra begins the folder's name, or else the whole name."""
        name = Path(self.folder).name
        number = name.partition("_")[0]
        return number if number.isdigit() else name

    @property
    def dense_identity(self) -> frozenset[str]:
        """Everything that the dense numbers depend on, for each way in which they were measured.

        Runs that leave out other documents of a task have measured in other ways.
        """
        config = self.report.config
        documents = {task: self.report.inputs.get(task) for task in self.report.left_out}
        ways = (config.get("eval") or {"": None}).items()
        identities = ([config.get("model"), documents, *way] for way in ways)
        return frozenset(json.dumps(identity, sort_keys=True) for identity in identities)

    def difference_to(self, first: "RunRecord", name: str) -> Difference | None:
        """Return how a number differs from the same number of the run `first`.

        Returns None if the runs have not kept the values of the same documents.

        The difference of an average over tasks is calculated from its tasks, if both runs have
        averaged the same tasks.
        """
        parts = self.report.averages.get(name)
        if parts != first.report.averages.get(name):
            return None

        names = parts or [name]
        before = {key: values for key, values in first.documents.items() if key[0] in names}
        after = {key: values for key, values in self.documents.items() if key[0] in names}
        differences = {part: difference for (part, _), difference in paired(before, after).items()}
        averages = {name: parts} if parts else {}
        return with_averages(differences, averages).get(name)


def read_run(folder: Path) -> RunRecord:
    """Read a run. If its status or report cannot be read, it is "damaged", and `error` says why."""
    state, error, report = _read_result(folder)
    settings = folder / ".hydra"
    choices = _read_choices(settings / "hydra.yaml")
    config = report.config or read_yaml(settings / "config.yaml")
    texts = flatten(config, choices)

    # If a run has no result, its interpolations are not resolved, and their values are unknown.
    resolved = {key: value for key, value in flat(config).items() if "${" not in str(value)}
    name = resolved.get("model.name")
    if resolved.get("plan"):
        choices |= {"metric": "plan", "structure": "plan"}
    ratio = resolved.get("ratio")
    if ratio is None:  # a run with a target has no ratio; show the removed share
        ratio = report.ratio.get("realised_decoder")
    if ratio is not None:
        ratio = round(float(ratio), 6)  # range(0.1,0.4,0.1) makes 0.30000000000000004

    return RunRecord(
        folder.name,
        state,
        error,
        files=tuple(name for name in FILES if (folder / name).is_file()),
        overrides=_read_overrides(settings / "overrides.yaml", texts),
        model=name and model_name(name, resolved.get("model.path", "")),
        method=resolved.get("method"),
        metric=choices.get("metric"),
        structure=choices.get("structure"),
        ratio=ratio,
        requested=_targets(texts) or str(ratio),
        seed=resolved.get("seed"),
        report=report,
        documents=Results(folder / RESULTS).documents(report.evaluation["pruned"]),
        config=texts,
    )


def _targets(config: FlatConfig) -> str:
    """Return the targets that a run was asked for: "target.bytes=2e8"."""
    targets = []
    for key, value in config.items():
        # leave out targets that are not set, and `target.sequences` if it has its default
        if key.startswith("target.") and value not in ("null", "1"):
            targets.append(f"{key}={value}")
    return " ".join(targets)


def _read_choices(path: Path) -> Config:
    """Read the choice of each group of the config, {"metric": "WIFV"}, from Hydra's own config."""
    values = flat(read_yaml(path)).items()
    prefix = "hydra.runtime.choices."
    return {key.removeprefix(prefix): value for key, value in values if key.startswith(prefix)}


def _read_result(folder: Path) -> tuple[str, str, Report]:
    """Return the state of a run, why it has no result, and its report."""
    # a run that was started from Python writes no status
    status = read_status(folder) if (folder / STATUS).exists() else {"state": "finished"}
    state = status.get("state")
    if state == "finished":
        try:
            return state, "", Report.load(folder / "report.json")
        except ValueError as error:
            return "damaged", str(error).removeprefix(f"{folder}/"), Report({})
    if state == "failed":
        return state, status.get("error") or "", Report({})
    if state == "running":
        return "unfinished", "no report: still running, or killed", Report({})
    return "damaged", f"{STATUS}: no state", Report({})


def _read_overrides(path: Path, config: FlatConfig) -> FlatConfig:
    """Read the settings that the command line of a run has set, {"calibration.num_samples": "32"}.

    config: the flat config of the run, which has their values. A value that is missing there
        stays as it was typed.
    """
    overrides = {}
    for line in read_yaml(path, list):
        key, _, value = str(line).partition("=")
        key = key.lstrip("+~")
        if is_setting(key):
            overrides[key] = config.get(key, value)
    return overrides
