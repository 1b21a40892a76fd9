"""Plans by layer: the widths of each, and the overlap of what two of them keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from flap.allocation import PruningPlan
from flap.models import Pair
from flap.results.compared import Subject
from flap.results.tables import Entry, Table

Widths = list[Pair[int]]
NOTE = (
    "KV heads and neurons that each layer keeps. Overlap: units that both keep, as a share of those that at least one "
    "of them keeps; 100 % = the same units."
)
OTHERS = (
    "KV heads and neurons that each layer keeps. The dense models have other widths, so that units have no overlap."
)


@dataclass(frozen=True)
class Layers:
    """The widths of every layer: of each subject, and of the dense model if all runs agree on it.

    same: whether units of the same number are the same units, as far as is known. errors: of each subject those of the
    hidden states after each layer; empty if they were not measured.
    """

    widths: list[Widths]
    dense: Widths
    same: bool
    errors: list[list[float | None]]


def by_layer(subjects: Sequence[Subject]) -> Layers:
    """Return the widths of the subjects' layers."""
    experts = next((_experts(subject) for subject in subjects if subject.report), [])
    dense = [_dense(subject) for subject in subjects if subject.report]
    same = all(one == dense[0] for one in dense) and len({len(subject.plan.layers) for subject in subjects}) == 1
    errors = [subject.report.layer_errors if subject.report else [] for subject in subjects]
    widths = [_widths(subject.plan, experts) for subject in subjects]
    return Layers(widths, dense[0] if dense and same else [], same, errors)


def _dense(subject: Subject) -> Widths:
    assert subject.report is not None
    return [Pair(layer["kv_heads"], layer.get("experts", layer["neurons"])) for layer in subject.report.layers_before]


def _experts(subject: Subject) -> list[int]:
    """Return the number of experts in each layer: a plan counts the neurons of all, a report those of one."""
    assert subject.report is not None
    pairs = zip(subject.plan.layers, subject.report.layers, strict=True)
    return [1 if "experts" in layer else max(1, len(kept.mlp) // max(1, layer["neurons"])) for kept, layer in pairs]


def _widths(plan: PruningPlan, experts: list[int]) -> Widths:
    counts = experts if len(experts) == len(plan.layers) else [1] * len(plan.layers)
    return [Pair(len(kept.attention), len(kept.mlp) // count) for kept, count in zip(plan.layers, counts, strict=True)]


def overlaps(subjects: Sequence[Subject], layers: Layers) -> Table:
    """Return the table of widths by layer, with the overlap of each subject with the first one."""
    heads = ["layer"]
    columns: list[list[str]] = [[*map(str, range(max(map(len, layers.widths)))), "all"]]
    for kind, label in enumerate(("KV heads", "neurons")):
        for i, subject in enumerate(subjects):
            heads.append(f"{subject.letter} {label}")
            widths = [layer[kind] for layer in layers.widths[i]]
            columns.append([*(f"{width:,}" for width in widths), f"{sum(widths):,}"])
            if i and layers.same:
                heads.append(f"overlap with {subjects[0].letter}")
                columns.append(_shares(subjects[0].plan, subject.plan, kind))
    rows = [tuple(map(Entry, row)) for row in zip_longest(*columns, fillvalue="")]
    return Table("Plans by layer", tuple(heads), rows, NOTE if layers.same else OTHERS, numeric=True)


def _shares(one: PruningPlan, other: PruningPlan, kind: int) -> list[str]:
    """Return the overlap in each layer and over all layers: |both| / |at least one|."""
    pairs = [(set(a[kind]), set(b[kind])) for a, b in zip(one.layers, other.layers, strict=True)]
    counts = [(len(a & b), len(a | b)) for a, b in pairs]
    total = sum(both for both, _ in counts), sum(either for _, either in counts)
    return [f"{both / either:.0%}" if either else "" for both, either in (*counts, total)]
