"""A plan that is given: the units that another run has kept, applied to this model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flap.method.allocation.budget import Budget, Units
from flap.method.allocation.plan import PruningPlan
from flap.method.allocation.structure import Structure
from flap.method.importance import Scores

FILE = "plan.json"  # of a finished run


@dataclass(frozen=True, kw_only=True)
class Given(Structure):
    """The kept units of a plan, whatever the scores and the budget: `plan=RUN|FILE` of the command line."""

    origin: str  # the run's folder or the file
    plan: PruningPlan

    @classmethod
    def read(cls, origin: str) -> "Given":
        """Return the plan of a finished run, or of a file.

        Raises:
            ValueError: there is none, or the file is no plan.
        """
        file = Path(origin) / FILE if Path(origin).is_dir() else Path(origin)
        try:
            plan = PruningPlan.load(file)
            if not plan.layers or any(
                type(unit) is not int for layer in plan.layers for kept in layer for unit in kept
            ):
                raise ValueError("no numbers of units")
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            expected = (
                f"the folder of a finished run, or its {FILE} ({type(error).__name__} at {file})"
            )
            raise ValueError(f"plan={origin}: expected {expected}") from error
        return cls(origin=origin, plan=plan, experts="expert" in plan.mlp_units)

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        return self.plan

    def check(self, budget: Budget) -> None:
        """Check that the plan is of a model with these units.

        Raises:
            ValueError: it is not; says where it differs first.
        """
        for difference in self._differences(budget):
            raise ValueError(f"plan={self.origin}: it does not fit this model: {difference}")

    def _differences(self, budget: Budget) -> Iterator[str]:
        plan = self.plan
        here = len(budget.layers)
        if len(plan.layers) != here:
            yield f"{len(plan.layers)} layers there and {here} here"
        dense = plan.dense or (None,) * here
        for i, (layer, kept, counts) in enumerate(
            zip(budget.layers, plan.layers, dense, strict=True)
        ):
            if (name := plan.mlp_units[i]) != layer.mlp.unit:
                yield f"layer {i} has {name}s there and {layer.mlp.unit}s here"
            for units, numbers, count, noun in zip(
                layer, kept, counts or (None, None), ("KV head", name), strict=True
            ):
                total = units.count * units.members
                if count not in (None, total):
                    yield f"layer {i} has {count} {noun}s there and {total} here"
                if not _fit(numbers, units):
                    members = (
                        f" ({units.members} experts of as many each)" if units.members > 1 else ""
                    )
                    yield f"layer {i} cannot keep these {len(numbers)} of its {total} {noun}s{members}"


def _fit(kept: tuple[int, ...], units: Units) -> bool:
    """Return whether these units can stay: in order, as many of every member, and no fewer than must."""
    inside = all(0 <= unit < units.count * units.members for unit in kept)
    each = Counter(unit // max(units.count, 1) for unit in kept)
    alike = len({each[member] for member in range(units.members)}) == 1
    fewest = units.count if units.fixed else max(units.fewest, 1)
    return inside and alike and each[0] >= fewest and list(kept) == sorted(set(kept))
