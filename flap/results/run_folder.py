"""Read the settings, the state and the report of one run from its folder.

A number is a measured result, such as a perplexity or an accuracy. A study consists of the runs of
one or more sweeps.
"""

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
    """A run as its files describe it.

    A setting, such as `metric`, is None if the files do not contain it.
    """

    # path of the run's folder; in a study, it is relative to the folder of the study's files
    folder: str
    state: str = "finished"  # the state of the run: "finished", "failed", "damaged" or "unfinished"
    error: str = ""  # why the run has no result; empty if it has a result
    files: tuple[str, ...] = ()
    overrides: FlatConfig = field(default_factory=dict)
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    structure: str | None = None
    ratio: float | None = None
    # The requested ratio (share of the parameters to remove), such as "0.2", or the targets, such
    # as "target.bytes=2e8". To rank runs by a measured number, a study compares only runs that have
    # the same text here.
    requested: str = ""
    seed: int | None = None
    # the settings that the command line sets, that differ between the runs of a study, and that
    # have no field above, such as "calibration.num_samples=32"
    options: str = ""
    # an empty report if the run has no result
    report: Report = field(default_factory=lambda: Report({}))
    # for each number that was measured on the pruned model, the results on the single documents or
    # windows of text, such as 0 or 1 for an accuracy
    documents: DocumentValues = field(default_factory=dict)
    sweep: str = ""  # the name of the run's sweep; empty unless the study has several sweeps
    config: FlatConfig = field(default_factory=dict)

    @property
    def number(self) -> str:
        """The job number with which the folder's name begins.

        If the name does not begin with a number, this is the whole name.
        """
        name = Path(self.folder).name
        number = name.partition("_")[0]
        return number if number.isdigit() else name

    @property
    def dense_identity(self) -> frozenset[str]:
        """The facts on which the measured numbers of the dense model depend.

        There is a JSON text for each evaluation, with the model, the options of the evaluation, and
        the documents that tasks leave out. Two runs with equal JSON texts have measured the same
        numbers of the dense model.
        """
        config = self.report.config
        documents = {task: self.report.inputs.get(task) for task in self.report.left_out}
        ways = (config.get("eval") or {"": None}).items()
        identities = ([config.get("model"), documents, *way] for way in ways)
        return frozenset(json.dumps(identity, sort_keys=True) for identity in identities)

    def difference_to(self, first: "RunRecord", name: str) -> Difference | None:
        """Return the difference of a number between two runs, this run minus `first`.

        The two runs are compared document by document. Return None if they have not stored the
        results of the same documents. The difference of an average over tasks is computed from the
        differences of these tasks. If the two runs have averaged different tasks, return None.

        name: the name of the number, such as "boolq/acc".
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
    """Read a run from its folder.

    If files of the run are damaged, `RunRecord.state` is "damaged", and `RunRecord.error` says why.
    """
    state, error, report = _read_result(folder)
    settings = folder / ".hydra"
    choices = _read_choices(settings / "hydra.yaml")
    config = report.config or read_yaml(settings / "config.yaml")
    texts = flatten(config, choices)

    # if there is no report, interpolations ("${…}") in the config are not resolved; leave them out
    resolved = {key: value for key, value in flat(config).items() if "${" not in str(value)}
    name = resolved.get("model.name")
    if resolved.get("plan"):
        choices |= {"metric": "plan", "structure": "plan"}
    ratio = resolved.get("ratio")
    # a run with a target has no requested ratio; use the share of parameters that was removed
    if ratio is None:
        ratio = report.ratio.get("realised_decoder")
    if ratio is not None:
        ratio = round(float(ratio), 6)  # Hydra's range(0.1,0.4,0.1) gives 0.30000000000000004

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
    """Return the requested targets of a run, such as "target.bytes=2e8"."""
    targets = []
    for key, value in config.items():
        # leave out targets that are not set, and `target.sequences` if it has its default value
        if key.startswith("target.") and value not in ("null", "1"):
            targets.append(f"{key}={value}")
    return " ".join(targets)


def _read_choices(path: Path) -> Config:
    """Read the chosen option of each config group, such as {"metric": "WIFV"}, from hydra.yaml."""
    values = flat(read_yaml(path)).items()
    prefix = "hydra.runtime.choices."
    return {key.removeprefix(prefix): value for key, value in values if key.startswith(prefix)}


def _read_result(folder: Path) -> tuple[str, str, Report]:
    """Return the state of a run, the reason if it has no result, and its report.

    If the run has a result, the reason is "". Otherwise, the report is empty.
    """
    # a run that was started from Python writes no status, and counts as finished
    status = read_status(folder) if (folder / STATUS).exists() else {"state": "finished"}
    state = status.get("state")
    if state == "finished":
        try:
            return state, "", Report.load(folder / "report.json")
        except ValueError as error:
            return "damaged", str(error).removeprefix(f"{folder}/"), Report({})
    if state == "failed":
        return state, status.get("error") or "", Report({})
    if state == "interrupted":
        return "unfinished", "no report: interrupted by Ctrl-C", Report({})
    if state == "running":
        return "unfinished", "no report: still running, or killed", Report({})
    return "damaged", f"{STATUS}: no state", Report({})


def _read_overrides(path: Path, config: FlatConfig) -> FlatConfig:
    """Read the settings that a run's command line changes: {"calibration.num_samples": "32"}.

    config: the flat config of the run, from which the values are taken. If a key is missing in this
        config, the value is taken from the command line.
    """
    overrides = {}
    for line in read_yaml(path, list):
        key, _, value = str(line).partition("=")
        key = key.lstrip("+~")
        if is_setting(key):
            overrides[key] = config.get(key, value)
    return overrides
