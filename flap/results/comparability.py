"""What a reader must know before comparing numbers: runs of different models or versions, or measured differently."""

from collections.abc import Iterator, Mapping
from typing import Any

from pandas import DataFrame

from flap.results.configs import varying
from flap.results.run_folder import RunRecord
from flap.results.study import Study


def notices(study: Study) -> Iterator[str]:
    """Yield a sentence for each way in which the finished runs are not alike, besides what their sweeps vary."""
    models = sorted({str(run.model) for run in study.finished})
    if len(models) > 1:
        yield (
            f"Runs of different models: {', '.join(models)}. Their perplexities can be compared only where the models "
            "have the same tokenizer."
        )
    made = DataFrame([_versions(run) | {"commit": str(run.value("git", "commit"))[:12]} for run in study.finished])
    if differ := [
        f"{name} {' and '.join(sorted(made[name].dropna().unique()))}" for name in made.columns[made.nunique() > 1]
    ]:
        yield f"Runs of different versions, from which differences may come: {', '.join(differ)}."
    for key, values in varying(run.config for run in study.finished).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def notes(runs: Mapping[str, RunRecord]) -> Iterator[str]:
    """Yield a sentence for each thing besides the config that should be equal among these (by letter) and is not."""
    facts = DataFrame([_facts(run) for run in runs.values()], index=[*runs], dtype=object)
    for name, values in facts.items():
        letters = values.dropna().groupby(values, sort=False).groups
        if len(letters) > 1:
            told = "; ".join(f"{', '.join(group)}: {value}" for value, group in letters.items())
            yield f"Different {name}. {told}."


def _facts(run: RunRecord) -> dict[str, Any]:
    """Return what should be equal, by its name in the plural; None: it is not known."""
    versions = {f"versions of {library}": version for library, version in _versions(run).items()}
    model = run.report.get("config", {}).get("model", {}).get("name")
    commit, device = run.value("git", "commit"), run.report.get("device")
    return {"models": model or None, **versions, "commits": commit or None, "devices": device or None}


def _versions(run: RunRecord) -> dict[str, str]:
    return dict(run.report.get("versions", {}))
