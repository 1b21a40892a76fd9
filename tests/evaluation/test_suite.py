"""With model.placement=stream, flap prunes a model with only one of its layers in memory.

If the whole model fits into memory, flap then measures the model with all evaluators. Otherwise,
flap makes only those measurements that are possible with one layer in memory.
"""

from pathlib import Path

import pytest

from flap.models import OnDisk, PlacedModel
from flap.pipeline import run
from flap.results import Report
from tests.helpers.runs import composed, tiny
from tests.helpers.zero_shot_toys import only_toys

PERPLEXITY = "words.txt/perplexity@16"
BITS = "words.txt/bits_per_byte@16"
ZERO_SHOT = "zero_shot/average"
EFFICIENCY = "efficiency/parameters"
LEFT_OUT = "not measured, because there is no room for"


@pytest.fixture(scope="module")
def measured(model_dir: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that runs flap with a given model.placement.

    The run measures perplexity, zero-shot accuracy and efficiency.
    """

    def make(placement: str, *more: str) -> Report:
        folder = tmp_path_factory.mktemp(placement)
        options = [
            "eval=[perplexity,zero_shot,efficiency]",
            "eval.zero_shot.tasks=[animals]",
            "ratio=0.4",
        ]
        short = [
            f"eval.efficiency.{name}" for name in ("prefill_len=4", "decode_len=2", "repeats=1")
        ]
        where = [f"model.placement={placement}", f"cache_dir={folder / 'cache'}"]
        return run(
            composed(*tiny(model_dir, text_file), *options, *short, *where, *more), folder / "run"
        )

    with only_toys(tmp_path_factory.mktemp("toys")):
        yield make


@pytest.fixture(scope="module")
def in_memory(measured) -> Report:
    return measured("device")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch):
    def bytes_free(number: float) -> None:
        monkeypatch.setattr("flap.models.placement.on_disk.free_bytes", lambda device: number)

    return bytes_free


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that records the size in bytes of each model that is loaded whole from disk.

    Whole means that all layers of the model are in memory at the same time.
    """
    sizes: list[int] = []
    in_memory = OnDisk.in_memory

    def spy(self: OnDisk) -> PlacedModel:
        loaded = in_memory(self)
        sizes.append(4 * loaded.model.num_parameters())
        return loaded

    monkeypatch.setattr(OnDisk, "in_memory", spy)
    return sizes


def assert_measured_alike(report: Report, in_memory: Report) -> None:
    for which in ("dense", "pruned"):
        assert report.evaluation[which].keys() == in_memory.evaluation[which].keys()
        for name in (PERPLEXITY, ZERO_SHOT, EFFICIENCY):
            assert report.evaluation[which][name] == in_memory.evaluation[which][name]


@pytest.mark.long
def test_what_fits_is_loaded_and_measured_as_any_other(
    measured, in_memory: Report, loaded: list[int]
) -> None:
    assert_measured_alike(measured("stream"), in_memory)
    dense, pruned, beside, pruned_again = loaded
    # Each model is loaded once for the tasks that measure one model at a time. Afterwards, both
    # models are loaded again to measure their speed alternately.
    assert dense == beside > pruned == pruned_again


def test_a_model_on_disk_is_measured_as_others(
    measured, in_memory: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = 2 * in_memory.parameters["total_before"]
    monkeypatch.setattr("flap.models.placement.spread.free_bytes", lambda device: half)
    report = measured("auto")
    assert "disk" in report.device_map.values()
    assert_measured_alike(report, in_memory)


def test_what_does_not_fit_streams(
    measured, in_memory: Report, loaded: list[int], room, caplog
) -> None:
    room(0)
    report = measured("stream")
    for which in ("dense", "pruned"):
        assert report.evaluation[which] == {
            name: in_memory.evaluation[which][name] for name in (PERPLEXITY, BITS)
        }
    assert not loaded
    whole = f"{LEFT_OUT} the whole model in memory: animals"
    both = f"{LEFT_OUT} both models in memory at once"
    assert [one for one in caplog.messages if one.startswith(LEFT_OUT)] == [
        whole,
        whole,
        f"{both}: efficiency",
    ]


def test_the_pruned_one_may_fit_where_the_other_does_not(
    measured, in_memory: Report, loaded: list[int], room
) -> None:
    size = 4 * in_memory.parameters["total_before"]
    room(1.5 * size - 1)
    report = measured("stream")
    assert report.evaluation["dense"].keys() == {PERPLEXITY, BITS}
    assert report.evaluation["pruned"].keys() >= {PERPLEXITY, ZERO_SHOT}
    assert report.evaluation["pruned"].items() <= in_memory.evaluation["pruned"].items()
    assert loaded == [4 * in_memory.parameters["total_after"]]


def test_nothing_is_loaded_for_numbers_that_are_known(
    measured, loaded: list[int], tmp_path: Path
) -> None:
    shared = f"cache_dir={tmp_path}"
    dense = 4 * measured("stream", shared).parameters["total_before"]
    assert loaded.count(dense) == 2
    measured("stream", shared, "ratio=0.3")
    # The dense model's perplexity and accuracy are already in the cache, so the second run loads
    # the dense model only once, to measure the speed of both models alternately.
    assert loaded.count(dense) == 3
