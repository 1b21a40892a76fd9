"""The file of scores that took a walk, a search's with what it measured: runs that differ in the ratio share it."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flap.importance.base import Scores
from flap.models import Pair
from flap.storage import Kind

SCORES_VERSION = 1  # raise it when a metric scores otherwise


def write_scores(scores: Scores, path: Path) -> None:
    """Write the scores of some layers to one safetensors file; other numbers in float64."""
    tensors = {"inverse_power": torch.tensor(scores.inverse_power, dtype=torch.float64)}
    for i, layer in enumerate(scores.layers):
        tensors |= {f"{i}.{block}": score.contiguous() for block, score in layer._asdict().items()}
    for i, nats in enumerate(scores.divergences):
        tensors[f"{i}.divergences"] = torch.tensor(nats, dtype=torch.float64)
    save_file(tensors, path)


def read_scores(path: Path) -> Scores:
    """Read the scores of the layers in a file."""
    tensors = load_file(path)
    power = tensors.pop("inverse_power").tolist()
    layers = range(1 + max(int(name.split(".")[0]) for name in tensors))
    scores = tuple(Pair(*(tensors[f"{i}.{block}"] for block in Pair._fields)) for i in layers)
    measured = [tensors[f"{i}.divergences"].tolist() for i in layers if f"{i}.divergences" in tensors]
    return Scores(scores, tuple(power), tuple(map(tuple, measured)))


SCORES: Kind[Scores] = Kind("scores", write_scores, read_scores)
