"""What runs that are not in memory hold, measure, share and leave. Their results: test_same_result.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from flap.models import OnDisk
from flap.pipeline import run
from tests.helpers.runs import composed


@pytest.mark.parametrize("choice", ["method=flap", "method=wanda_sp", "method=flap_plus"])
def test_one_layer_or_the_rest_is_in_memory(
    choice: str, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[set[str]] = []
    visits: list[int] = []
    layer = OnDisk.layer
    ends = OnDisk.ends

    def note(placed: OnDisk) -> None:
        there = {
            name
            for name, parameter in placed.model.named_parameters()
            if parameter.device.type != "meta"
        }
        held.append({name.split(".")[2] if "layers" in name else "rest" for name in there})

    @contextmanager
    def noted_layer(self: OnDisk, index: int) -> Iterator[nn.Module]:
        visits.append(index)
        with layer(self, index) as present:
            note(self)
            yield present
            note(self)

    @contextmanager
    def noted_ends(self: OnDisk) -> Iterator[None]:
        with ends(self):
            note(self)
            yield
            note(self)

    monkeypatch.setattr(OnDisk, "layer", noted_layer)
    monkeypatch.setattr(OnDisk, "ends", noted_ends)
    options = [
        "model.placement=stream",
        f"cache_dir={tmp_path / 'cache'}",
        "calibration.batch_size=3",
        "ratio=0.4",
    ]
    run(composed(*base, *options, "eval.perplexity.max_tokens=320", choice), tmp_path / "run")
    assert all(len(parts) == 1 for parts in held), held
    assert set.union(*held) == {*"0123", "rest"}
    assert len({visits.count(i) for i in range(4)}) == 1
    if (
        choice == "method=flap"
    ):  # to calibrate, score, compress and write; to compare what it was with what is there
        assert visits.count(0) == 6


def test_statistics_are_shared_with_runs_in_memory(base: list[str], tmp_path: Path) -> None:
    arguments = (*base, f"cache_dir={tmp_path / 'cache'}")
    run(composed(*arguments), tmp_path / "device")
    report = run(composed(*arguments, "model.placement=stream"), tmp_path / "stream")
    assert report.statistics_cache == "hit"
    assert (tmp_path / "stream" / "plan.json").read_text() == (
        tmp_path / "device" / "plan.json"
    ).read_text()
