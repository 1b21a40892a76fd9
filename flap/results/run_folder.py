"""Read one run from its folder: what it was told, how far it came and what it found."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flap.config.resolvers import model_name
from flap.evaluation.errors import Difference, paired, with_averages
from flap.evaluation.result_files import RESULTS, DocumentValues, Results
from flap.results.configs import CHOICES, flat, flatten, is_bookkeeping
from flap.results.number_texts import domain_of
from flap.results.report import read_report
from flap.storage import read_yaml
from flap.storage.status import STATUS, read_status

FILES = ("report.md", "report.json", "layers.png", "flap.log")


@dataclass(frozen=True)
class RunRecord:
    """One run. A choice is None if the files do not say it; `report` is report.json, empty without a result."""

    folder: str  # as a page links to it: relative to the study's folder
    state: str = "finished"  # finished, failed, damaged, unfinished
    error: str = ""  # why there is no result
    files: tuple[str, ...] = ()
    overrides: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    structure: str | None = None
    ratio: float | None = None
    requested: str = ""  # "0.2" or "target.bytes=2e8": runs of equal ones are compared
    seed: int | None = None
    options: str = (
        ""  # other overrides that differ between the runs of a study: "calibration.num_samples=32"
    )
    report: dict[str, Any] = field(default_factory=dict)
    documents: DocumentValues = field(default_factory=dict)  # of the pruned model
    sweep: str = ""  # the name of its sweep, in a study of several
    config: dict[str, str] = field(default_factory=dict)  # by dotted key (`flap.results.configs`)

    @property
    def number(self) -> str:
        """The job's number, with which Hydra begins the folder's name; if there is none, the whole name."""
        name = self.folder.rpartition("/")[2]
        number, _, _ = name.partition("_")
        return number if number.isdigit() else name

    @property
    def dense_identity(self) -> frozenset[str]:
        """What the dense numbers depend on: the model, its path and type, and each way in which it was measured.

        Runs that leave out other documents of a task have measured in other ways.
        """
        config = self.report.get("config", {})
        ways = (config.get("eval") or {"": None}).items()
        documents = {task: self.value("inputs", task) for task in self.report.get("left_out", {})}
        return frozenset(
            json.dumps([self.model, config.get("model"), documents, *way], sort_keys=True)
            for way in ways
        )

    def differences_to(self, first: "RunRecord", names: Iterable[str]) -> dict[str, Difference]:
        """Return the difference self - first of each number that both runs have kept of the same documents.

        That of an average over tasks is from those of its tasks, if both runs have averaged the same ones.
        """
        averages = self.report.get("averages", {})
        same = {
            name: parts
            for name, parts in averages.items()
            if first.report.get("averages", {}).get(name) == parts
        }
        wanted = {
            part
            for name in names
            for part in same.get(name, [name] if name not in averages else [])
        }
        a, b = (
            {key: values for key, values in run.documents.items() if key[0] in wanted}
            for run in (first, self)
        )
        return with_averages(
            {name: difference for (name, _), difference in paired(a, b).items()}, same
        )

    def numbers(self, which: str) -> dict[str, float]:
        """Return the numbers of a model, "dense" or "pruned"; infinity: not finite."""
        return dict(self.value("evaluation", which) or {})

    def domain(self, name: str) -> str:
        """Return the domain of a number's text, "calibration" or "other"; empty if the report does not say."""
        return domain_of(name, self.report.get("domains", {}))

    def value(self, section: str, name: str) -> Any:
        """Return an entry of the report, or None if it is missing: value("seconds", "total")."""
        return (self.report.get(section) or {}).get(name)


def read_run(folder: Path) -> RunRecord:
    """Return the run in a folder. If its status or report cannot be read it is "damaged", and `error` says why."""
    state, error, report = _read_result(folder)
    choices = _read_choices(folder / ".hydra" / "hydra.yaml")
    config = (
        report["config"] if state == "finished" else read_yaml(folder / ".hydra" / "config.yaml")
    )
    texts = flatten(config, choices)
    resolved = {key: value for key, value in flat(config).items() if "${" not in str(value)}
    ratio = resolved.get("ratio")
    name = resolved.get("model.name")
    if resolved.get("plan"):
        choices |= {"metric": "plan", "structure": "plan"}
    target = " ".join(  # without what was not asked for, and without the one sequence of a target in memory
        f"{key}={value}"
        for key, value in texts.items()
        if key.startswith("target.") and value not in ("null", "1")
    )
    if ratio is None and state == "finished":  # a run with a target: the share that it took
        ratio = report["ratio"]["realised_decoder"]
    ratio = (
        None if ratio is None else round(float(ratio), 6)
    )  # range(0.1,0.4,0.1) makes 0.30000000000000004
    return RunRecord(
        folder=folder.name,
        state=state,
        error=error,
        files=tuple(name for name in FILES if (folder / name).is_file()),
        overrides=_read_overrides(folder / ".hydra" / "overrides.yaml", texts),
        model=name
        and model_name(
            name, resolved.get("model.path", "")
        ),  # a run without a result has not resolved it
        method=resolved.get("method"),
        metric=choices.get("metric"),
        structure=choices.get("structure"),
        ratio=ratio,
        requested=target or str(ratio),
        seed=resolved.get("seed"),
        report=report,
        documents=Results(folder / RESULTS).documents(report["evaluation"]["pruned"])
        if report
        else {},
        config=texts,
    )


def _read_choices(path: Path) -> dict[str, Any]:
    """Read the choice of each group of the config, {"metric": "WIFV"}, from Hydra's own config."""
    section: Any = read_yaml(path)
    for name in ("hydra", "runtime", "choices"):
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}


def _read_result(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Return the state of a run, why it has no result, and its report."""
    written = (folder / STATUS).exists()  # not by a run that was started from Python
    status = read_status(folder) if written else {"state": "finished"}
    if status.get("state") == "finished":
        try:
            return "finished", "", read_report(folder / "report.json")
        except ValueError as error:
            return "damaged", str(error), {}
    if status.get("state") == "failed":
        return "failed", status.get("error") or "", {}
    if status.get("state") == "running":
        return "unfinished", "no report: still running, or killed", {}
    return "damaged", f"{STATUS}: no state", {}


def _read_overrides(path: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides of a run, {"calibration.num_samples": "32"}, without those that are fields of `RunRecord`.

    texts: the run's config, from which values are taken, unless they are missing there: as they were typed.
    """
    lines = (str(line).partition("=") for line in read_yaml(path, list))
    pairs = {key.lstrip("+~"): value for key, _, value in lines}
    fields = (
        *CHOICES,
        "run_name",
        "checkpoint.dir",
    )  # the last two name a run, and do not change its result
    keys = [
        key for key in pairs if key.removesuffix(".name") not in fields and not is_bookkeeping(key)
    ]
    return {key: texts.get(key, pairs[key]) for key in keys}
