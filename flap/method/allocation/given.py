"""Read the plan that the option `plan` names, and check that it fits the model of this run.

A plan lists the units that stay in each layer: KV heads, neurons or experts. A block is the
attention or the MLP of a layer.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from flap.config import one_line, shipped_folder, shown
from flap.method.allocation.budget import Budget, Units
from flap.method.allocation.plan import PruningPlan
from flap.models import Pair

FILE = "plan.json"  # name of the file with the plan in the folder of a finished run


def packaged_plans() -> dict[str, Path]:
    """Return a dict from names of packaged plans, such as smollm2-135m/flap-0.2, to their files."""
    folder = shipped_folder("plans")
    files = sorted(folder.glob("*/*.json"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


@dataclass(frozen=True)
class GivenPlan:
    """The plan that the option `plan` names: from another run, from a file, or packaged in flap."""

    origin: str  # the folder of a finished run, a file, or the name of a packaged plan
    plan: PruningPlan

    @classmethod
    def read(cls, origin: str) -> "GivenPlan":
        """Read the plan of a finished run, a plan in a file, or a packaged plan.

        origin: the folder of a finished run, a file, or the name of a packaged plan. An existing
            file or folder takes precedence over a packaged plan of the same name.

        Raises:
            ValueError: the folder or file contains no plan, or `origin` is neither an existing path
                nor the name of a packaged plan.
        """
        plans = packaged_plans()
        allowed = f"the folder of a finished run, or its {FILE}"
        file = Path(origin)
        if file.is_dir():
            file = file / FILE
        elif not file.exists():
            similar = get_close_matches(origin, plans, cutoff=0.5) or plans
            allowed += f", or a packaged plan, such as {', '.join(similar)}"
            file = plans.get(origin, file)
        try:
            plan = PruningPlan.load(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error, 200)
            raise ValueError(
                f"plan={shown(origin)}: expected {allowed} (in {shown(file)}: {reason})"
            ) from error
        return cls(origin, plan)

    @property
    def experts(self) -> bool:
        """Whether the plan removes whole experts instead of neurons."""
        return "expert" in self.plan.mlp_units

    def check(self, budget: Budget) -> None:
        """Check that the plan was made for a model with the same layers and units as in `budget`.

        Raises:
            ValueError: the plan is for a model with other layers or units, or it keeps a set of
                units that this model cannot keep. The message names the first difference.
        """
        difference = next(self._differences(budget), None)
        if difference is not None:
            raise ValueError(f"plan={shown(self.origin)}: it does not fit this model: {difference}")

    def _differences(self, budget: Budget) -> Iterator[str]:
        there = len(self.plan.layers)
        here = len(budget.layers)
        if there != here:
            yield f"{there} layers there and {here} here"
        for i, layer in enumerate(budget.layers):
            yield from self._layer_differences(i, layer)

    def _layer_differences(self, i: int, layer: Pair[Units]) -> Iterator[str]:
        noun = self.plan.mlp_units[i]
        if noun != layer.mlp.unit:
            yield f"layer {i} has {noun}s there and {layer.mlp.unit}s here"

        counts = self.plan.dense[i] if self.plan.dense else Pair(None, None)
        blocks = zip(layer, self.plan.layers[i], counts, ("KV head", noun), strict=True)
        for units, kept, count, name in blocks:
            total = units.count * units.members
            if count not in (None, total):
                yield f"layer {i} has {count} {name}s there and {total} here"
            if not _fit(kept, units):
                members = ""
                if units.members > 1:
                    members = f" ({units.members} experts of as many each)"
                yield f"layer {i} cannot keep these {len(kept)} of its {total} {name}s{members}"


def _fit(kept: tuple[int, ...], units: Units) -> bool:
    """Return whether a block with these `units` can keep exactly the units with the indices `kept`.

    The indices must be ascending. All members of the block, such as experts, must keep the same
    number of units. Each member must keep at least one unit, and at least the minimum number of
    units (`Units.fewest`). If no unit may be removed (`Units.fixed`), the block must keep all of
    its units.
    """
    inside = all(0 <= unit < units.count * units.members for unit in kept)
    ascending = list(kept) == sorted(set(kept))
    by_member = Counter(unit // max(units.count, 1) for unit in kept)
    equal = len({by_member[member] for member in range(units.members)}) == 1
    fewest = units.count if units.fixed else max(units.fewest, 1)
    return inside and ascending and equal and by_member[0] >= fewest
