"""What a reader must know before comparing numbers: runs of different models or versions, or measured differently."""

from collections.abc import Iterator, Mapping
from typing import Any

from pandas import DataFrame

from flap.results.configs import varying
from flap.results.run_folder import RunRecord
from flap.results.study import Study

VERSIONS = "versions of "


def notices(study: Study) -> Iterator[str]:
    """Yield a sentence for each way in which the finished runs are not alike, besides what their sweeps vary."""
    differ = _differing({run.folder: run for run in study.finished})
    if models := differ.get("models"):
        yield (
            f"Runs of different models: {', '.join(sorted(models))}. Their perplexities can be compared only where the "
            "models have the same tokenizer."
        )
    libraries = {name: name.removeprefix(VERSIONS) for name in differ if name.startswith(VERSIONS)}
    versions = {library: sorted(differ[name]) for name, library in libraries.items()}
    versions |= {"commit": sorted(commit[:12] for commit in differ["commits"])} if "commits" in differ else {}
    if versions:
        found = ", ".join(f"{name} {' and '.join(values)}" for name, values in versions.items())
        yield f"Runs of different versions, from which differences may come: {found}."
    for key, values in varying(run.config for run in study.finished).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def notes(runs: Mapping[str, RunRecord]) -> Iterator[str]:
    """Yield a sentence for each thing besides the config that should be equal among these (by letter) and is not."""
    for name, letters in _differing(runs).items():
        told = "; ".join(f"{', '.join(group)}: {value}" for value, group in letters.items())
        yield f"Different {name}. {told}."


def _differing(runs: Mapping[str, RunRecord]) -> dict[str, Mapping[Any, Any]]:
    """Return the names of the runs by each value of what should be equal and is not; what is unknown is no value."""
    facts = DataFrame([_facts(run) for run in runs.values()], index=[*runs], dtype=object)
    values = {name: column.dropna() for name, column in facts.items()}
    groups = {str(name): found.groupby(found, sort=False).groups for name, found in values.items()}
    return {name: found for name, found in groups.items() if len(found) > 1}


def _facts(run: RunRecord) -> dict[str, Any]:
    """Return what should be equal, by its name in the plural; None: it is not known."""
    versions = {VERSIONS + library: version for library, version in run.report.get("versions", {}).items()}
    model = run.report.get("config", {}).get("model", {}).get("name")
    commit, device = run.value("git", "commit"), run.report.get("device")
    return {"models": model or None, **versions, "commits": commit or None, "devices": device or None}
