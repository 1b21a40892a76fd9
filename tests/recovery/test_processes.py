"""Two processes that share each batch train as one does."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flap.config import ModelConfig
from flap.models import Resident, Source, find_model
from flap.recovery import processes
from flap.recovery.distillation import recover
from tests.recovery.small import FULL, SEQ_LEN, compressed, windows

SHORT = replace(FULL, tokens=4 * 8 * SEQ_LEN)


@pytest.fixture
def source(model_dir: Path, tmp_path: Path) -> Source:
    return find_model(ModelConfig("tiny", str(model_dir), device="cpu"), tmp_path / "cache", trust_remote_code=False)


@pytest.mark.long
def test_they_train_as_one_process_does(source: Source, tmp_path: Path) -> None:
    one, two = compressed(), compressed()
    expected = recover(SHORT, Resident(one), source, windows(SHORT), tmp_path / "one", seed=0)
    found = recover(replace(SHORT, processes=2), Resident(two), source, windows(SHORT), tmp_path / "two", seed=0)
    assert found["nats_after"] == pytest.approx(expected["nats_after"], abs=1e-6) and found["tokens"] == SHORT.tokens
    assert found["nats_after"] < 0.99 * found["nats_before"]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_run_that_has_ended_is_seen_also_where_nobody_has_waited_for_it() -> None:
    """As in a container without an init: a killed run keeps its number, and its processes must not wait for ever."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert processes._runs(os.getpid()) and not processes._runs(ended.pid)
    ended.wait()
    assert not processes._runs(ended.pid)


def test_one_that_fails_is_said(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER", "flap.no_such_module")
    with pytest.raises(RuntimeError, match=r"recover.processes=2: a process of the training failed, as it says above"):
        recover(replace(SHORT, processes=2), Resident(compressed()), source, windows(SHORT), tmp_path / "work", seed=0)
