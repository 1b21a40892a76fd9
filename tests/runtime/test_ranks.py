"""The processes of a run divide work among themselves, and all get the same results and errors."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from flap.runtime import ranks
from flap.storage import WorkFolder
from tests.helpers.ranks import in_ranks


def refuse() -> None:
    raise ValueError("no")


def refuse_unless_first() -> None:
    if not ranks.is_first():
        refuse()


def share_items() -> None:
    rank = ranks.rank()
    assert ranks.own_share(range(8)) == [[0, 5, 6], [1, 4, 7], [2, 3]][rank]
    assert ranks.gather_in_order([str(k) for k in ranks.own_share(range(8))]) == list("01234567")

    makes = [lambda k=k: (k, ranks.rank()) for k in range(4)]
    assert ranks.each_by_one(makes) == [(0, 0), (1, 1), (2, 2), (3, 2)]


def exchange_values() -> None:
    rank = ranks.rank()
    assert ranks.gather(torch.tensor(rank)) == [0, 1, 2]

    tensor = torch.tensor([1e8, 1.0, -1e8])[rank].reshape(1)
    ranks.add_up(tensor)
    assert tensor.item() == 0  # added in the order of the ranks: (1e8 + 1) - 1e8 is 0 in float32


def let_the_first_work() -> None:
    rank = ranks.rank()
    assert ranks.by_first(lambda word, of: (word, of))("mine", of=rank) == ("mine", 0)

    facts = ranks.on_first(lambda: (ranks.rank(), ranks.size(), ranks.gather("alone")))
    assert facts == (0, 1, ["alone"])


def fail_together() -> None:
    with pytest.raises(ranks.AgreedError, match=r"^no$"):
        ranks.agreed(refuse)
    with pytest.raises(ranks.AgreedError, match=r"^rank 1 on \S+: no$"):
        ranks.agreed(refuse_unless_first)
    with pytest.raises(ranks.AgreedError, match=r"^no$"):
        ranks.on_first(refuse)
    with pytest.raises(ranks.AgreedError, match=r"^ZeroDivisionError: "):
        ranks.on_first(lambda: 1 / 0)


def work_together() -> None:
    """Run the four checks above in this process, which is one of three processes.

    If an assertion fails, the exit code of the process is not 0.
    """
    share_items()
    exchange_values()
    let_the_first_work()
    fail_together()
    ranks.barrier()


def test_three_processes_share_and_agree() -> None:
    assert in_ranks(3, work_together) == [0, 0, 0]


def clear_and_write(folder: Path) -> None:
    """Clear a folder, and then write to it.

    The second process begins later, when the first process may already have written its files.
    """
    time.sleep(0.5 * ranks.rank())
    WorkFolder(folder).clear()
    own = ranks.own_folder(folder)
    own.mkdir(parents=True)
    ranks.barrier()
    assert own.is_dir()


def test_a_folder_is_cleared_before_any_process_writes_there(tmp_path: Path) -> None:
    assert in_ranks(2, clear_and_write, tmp_path / "work") == [0, 0]


def wait_for_a_silent_process() -> None:
    """Let the first process sleep, and let the second process wait for it until the timeout."""
    if ranks.is_first():
        time.sleep(15)
    else:
        with pytest.raises(
            ranks.LostError, match=r"^another process has ended, or does not answer"
        ):
            ranks.barrier()
    os._exit(0)


@pytest.mark.long
def test_a_process_that_does_not_answer_is_waited_for_no_longer_than_the_timeout() -> None:
    assert in_ranks(2, wait_for_a_silent_process, timeout=timedelta(seconds=10)) == [0, 0]
