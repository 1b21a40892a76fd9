"""Signs of life: a process that ends or freezes is noticed by the others, whatever they do."""

import os
import subprocess
import sys
from queue import SimpleQueue

import pytest

import flap.sweeps.heartbeats
from flap.storage import ranks
from flap.sweeps.heartbeats import Heartbeats
from tests.helpers.ranks import in_ranks


def second_fails(says_why: bool) -> None:
    """The first process hears of it; a failed assertion is an exit code."""
    flap.sweeps.heartbeats.LOOKS = 3
    heard: SimpleQueue[tuple[list[str], bool]] = SimpleQueue()
    heartbeats = Heartbeats(lambda *given: heard.put(given))
    if not ranks.first():
        if says_why:
            heartbeats.fail()
        os._exit(0)
    silent, speaks = heard.get(timeout=10)
    assert speaks != says_why
    assert silent == ([] if says_why else [ranks.name().replace("rank 0", "rank 1")])
    os._exit(0)


@pytest.mark.parametrize("says_why", [False, True])
def test_a_process_that_has_ended_is_known_to_the_others(says_why: bool) -> None:
    assert in_ranks(2, second_fails, says_why) == [0, 0]


LEAVES = """
import os, time
from torch.distributed import TCPStore
from flap.sweeps import heartbeats

store = TCPStore("localhost", 0, is_master=True)
os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
heartbeats.INTERVAL = 0.0  # always within the store
signs = heartbeats.Heartbeats(lambda *_: None)
time.sleep(0.3)
signs.end()
"""


def test_a_process_that_leaves_is_not_aborted_within_a_sign() -> None:
    subprocess.run([sys.executable, "-c", LEAVES], check=True)
