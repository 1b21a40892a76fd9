"""What a reader must know before comparing numbers: runs of different models or versions, or measured differently."""

from collections.abc import Iterator

from flap.results.config_keys import varying
from flap.results.study import Study


def notices(study: Study) -> Iterator[str]:
    """Yield a sentence for each way in which the finished cells are not alike, besides what their sweeps vary."""
    models = sorted({str(cell.model) for cell in study.finished})
    if len(models) > 1:
        yield (
            f"Runs of different models: {', '.join(models)}. Their perplexities can be compared only where the models "
            "have the same tokenizer."
        )
    if differ := ", ".join(_versions(study)):
        yield f"Runs of different versions, from which differences may come: {differ}."
    for key, values in varying(study.finished).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def _versions(study: Study) -> Iterator[str]:
    """Yield the names that have several versions among the cells: "torch 2.6.0 and 2.7.1"."""
    found: dict[str, set[str]] = {}
    for cell in study.finished:
        for name, version in (cell.report["versions"] | {"commit": str(cell.report["git"]["commit"])[:12]}).items():
            found.setdefault(name, set()).add(version)
    yield from (f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items() if len(versions) > 1)
