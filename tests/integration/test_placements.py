"""With model.placement=stream, a run holds only one layer of the model in memory at a time.

Such a run reuses the cached calibration statistics of an earlier run that held the whole model in
memory.

test_same_result.py compares the results of these runs with those of runs in memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from flap.models import OnDisk
from flap.pipeline import run
from tests.helpers.marks import quick
from tests.helpers.runs import composed


def parts_in_memory(model: nn.Module) -> set[str]:
    """Return the indices of the layers in memory, and "rest" if other weights are in memory."""
    parts = set()
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta":
            parts.add(name.split(".")[2] if "layers" in name else "rest")
    return parts


class Observed:
    """Record which weights are in memory while a layer, or the rest of the model, is in use.

    visits: how often each layer was read from the disk.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_memory: list[set[str]] = []
        self.visits: Counter[int] = Counter()
        layer = OnDisk.layer
        ends = OnDisk.ends

        @contextmanager
        def observed_layer(placed: OnDisk, index: int) -> Iterator[nn.Module]:
            self.visits[index] += 1
            with layer(placed, index) as present:
                self.in_memory.append(parts_in_memory(placed.model))
                yield present
                self.in_memory.append(parts_in_memory(placed.model))

        @contextmanager
        def observed_ends(placed: OnDisk) -> Iterator[None]:
            with ends(placed):
                self.in_memory.append(parts_in_memory(placed.model))
                yield
                self.in_memory.append(parts_in_memory(placed.model))

        monkeypatch.setattr(OnDisk, "layer", observed_layer)
        monkeypatch.setattr(OnDisk, "ends", observed_ends)


@pytest.mark.parametrize("choice", quick(1, ["method=flap_plus", "method=flap", "method=wanda_sp"]))
def test_one_layer_or_the_rest_is_in_memory(
    choice: str, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = Observed(monkeypatch)
    options = [
        "model.placement=stream",
        f"cache_dir={tmp_path / 'cache'}",
        "calibration.batch_size=3",
        "ratio=0.4",
        "eval.perplexity.max_tokens=320",
    ]
    run(composed(*base, *options, choice), tmp_path / "run")

    for parts in observed.in_memory:
        assert len(parts) == 1, observed.in_memory
    assert set.union(*observed.in_memory) == {"0", "1", "2", "3", "rest"}
    assert observed.visits.keys() == {0, 1, 2, 3}
    assert len(set(observed.visits.values())) == 1
    if choice == "method=flap":
        # Each layer is read six times: once for each of the steps calibrate, score, compress and
        # write, and twice to compare the pruned model with its checkpoint.
        assert observed.visits[0] == 6


def test_statistics_are_shared_with_runs_in_memory(base: list[str], tmp_path: Path) -> None:
    arguments = (*base, f"cache_dir={tmp_path / 'cache'}")
    run(composed(*arguments), tmp_path / "device")
    report = run(composed(*arguments, "model.placement=stream"), tmp_path / "stream")
    assert report.statistics_cache == "hit"
    assert (tmp_path / "stream" / "plan.json").read_text() == (
        tmp_path / "device" / "plan.json"
    ).read_text()
