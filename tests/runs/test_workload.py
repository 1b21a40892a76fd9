"""What a process has to do of a run on the tiny model."""

from tests.runs.conftest import Foretell


def test_a_process_has_its_share_of_windows_trials_and_texts(foretell: Foretell) -> None:
    options = ["method=flap_plus", "structure.levels=[0.25,0.5]", "structure.tokens=32", "calibration.num_samples=32"]
    one, four = (foretell(*options, f"processes={count}") for count in (1, 4))
    assert (one.tokens, four.tokens) == (32 * 16, 8 * 16)
    assert [four.own_windows(windows, 8) for windows in (3, 10, 40)] == [3, 8, 16]  # batches are shared out
    assert [walk.streams for walk in (one.search_walk, four.search_walk) if walk] == [[5, 9, 13, 17], [2, 3, 4, 5]]


def test_without_a_search_there_is_no_walk_of_one(foretell: Foretell) -> None:
    assert foretell("method=flap").search_walk is None


def test_what_stays_is_less_by_the_ratio_unless_units_are_masked(foretell: Foretell) -> None:
    dense, pruned, masked = (foretell(*one) for one in (("ratio=0",), ("ratio=0.5",), ("ratio=0.5", "mask_only=true")))
    assert dense.kept_parameters - pruned.kept_parameters == 0.5 * dense.place.shapes.prunable
    assert masked.kept_parameters == dense.kept_parameters == dense.place.shapes.parameters
