"""What a reader must know before comparing numbers: runs of different models or versions, or measured differently."""

from collections.abc import Iterator, Sequence
from typing import Any

from flap.results.configs import varying
from flap.results.run_folder import RunRecord


def notices(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a sentence for each way in which finished runs are not alike, besides what their sweeps vary."""
    models = _distinct(run.model for run in runs)
    if len(models) > 1:
        yield (
            f"Runs of different models: {', '.join(models)}. Their perplexities can be compared only where the "
            "models have the same tokenizer."
        )
    libraries = dict.fromkeys(name for run in runs for name in run.report.get("versions", {}))
    versions = {name: _distinct(run.value("versions", name) for run in runs) for name in libraries}
    versions["commit"] = _distinct((run.value("git", "commit") or "")[:12] for run in runs)
    differ = [f"{name} {' and '.join(values)}" for name, values in versions.items() if len(values) > 1]
    if differ:
        yield f"Runs of different versions, from which differences may come: {', '.join(differ)}."
    for key, values in varying(run.config for run in runs).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def _distinct(values: Iterator[Any]) -> list[str]:
    """Return the values that are known, each once."""
    return sorted({*values} - {None, ""})
