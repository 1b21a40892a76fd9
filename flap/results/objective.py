"""Numbers, such as a perplexity, that a run returns to Hydra. Hydra's sweepers optimise them."""

from collections.abc import Sequence
from difflib import get_close_matches

from flap.config import OBJECTIVES
from flap.results.configs import flat
from flap.results.record import Record

Objective = float | tuple[float, ...] | None


def objective_of(report: Record, names: Sequence[str]) -> Objective:
    """Return the numbers with these names from the report of a run.

    For one name, the result is a float. For several names, the result is a tuple of floats. If
    `names` is empty, the result is None.

    names: names of numbers, such as "pruned/sciq_answers/exact_match" or "parameters/total_after".

    Raises:
        ValueError: the report has no number with one of these names.
    """
    parts = report.evaluation | vars(report)
    numbers = flat({section: parts[section] for section in OBJECTIVES}, separator="/")
    values = []
    for name in names:
        if name not in numbers:
            similar = get_close_matches(name, numbers, n=3) or sorted(numbers)
            expected = f"expected one of {', '.join(similar)}"
            raise ValueError(f"objective={name}: the run has no such number; {expected}")
        values.append(float(numbers[name]))
    if len(values) < 2:
        return values[0] if values else None
    return tuple(values)
