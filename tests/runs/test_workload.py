"""What a process has to do of a run on the tiny model."""

from tests.runs.conftest import Foretell


def test_without_a_search_there_is_no_walk_of_one(foretell: Foretell) -> None:
    assert foretell("method=flap").search_walk is None


def test_what_stays_is_less_by_the_ratio_unless_units_are_masked(foretell: Foretell) -> None:
    dense, pruned, masked = (foretell(*one) for one in (("ratio=0",), ("ratio=0.5",), ("ratio=0.5", "mask_only=true")))
    assert dense.kept_parameters - pruned.kept_parameters == 0.5 * dense.place.shapes.prunable
    assert masked.kept_parameters == dense.kept_parameters == dense.place.shapes.parameters
