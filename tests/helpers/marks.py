"""Mark test cases that `make test` leaves out."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick(number: int, cases: Iterable[Any]) -> list[Any]:
    """Give the marker `long` to all cases after the first `number` cases.

    `make test` runs only the first cases, and `make checks` runs all of them.
    """
    marked = []
    for i, case in enumerate(cases):
        if i < number:
            marked.append(case)
        elif type(case) is tuple:  # several arguments; a NamedTuple is only one argument
            marked.append(pytest.param(*case, marks=pytest.mark.long))
        else:
            marked.append(pytest.param(case, marks=pytest.mark.long))
    return marked
