"""The primitives by which processes share a run: with one process all of them are the identity."""

import pytest
import torch

from flap.storage import ranks
from tests.helpers.ranks import in_ranks


def test_with_one_process_they_are_the_identity() -> None:
    assert (ranks.rank(), ranks.size(), ranks.first()) == (0, 1, True)
    assert ranks.mine("abc") == list("abc") == ranks.together(list("abc"))
    assert ranks.gather(1) == [1] and ranks.from_first(lambda: 2) == ranks.agreed(lambda: 2) == 2
    tensor = torch.ones(3)
    ranks.add_up(tensor)
    assert tensor.tolist() == [1, 1, 1]


def refuse() -> None:
    raise ValueError("no")


def refuse_unless_first() -> None:
    if not ranks.first():
        refuse()


def work_together() -> None:
    """What three processes do; a failed assertion is an exit code."""
    rank = ranks.rank()
    assert ranks.mine(range(8)) == [[0, 5, 6], [1, 4, 7], [2, 3]][rank]
    assert ranks.together([str(k) for k in ranks.mine(range(8))]) == list("01234567")
    assert ranks.mine(range(8), behind=2) == [[4], [0, 2, 5], [1, 3, 6, 7]][rank]
    assert ranks.together([str(k) for k in ranks.mine(range(8), behind=2)], behind=2) == list("01234567")
    assert ranks.shared([lambda k=k: (k, ranks.rank()) for k in range(4)]) == [(0, 0), (1, 1), (2, 2), (3, 2)]
    assert ranks.gather(torch.tensor(rank)) == [0, 1, 2]
    assert ranks.from_first(lambda: (ranks.rank(), ranks.size(), ranks.gather("alone"))) == (0, 1, ["alone"])
    tensor = torch.tensor([1e8, 1.0, -1e8])[rank].reshape(1)
    ranks.add_up(tensor)
    assert tensor.item() == 0  # (1e8 + 1) - 1e8 in float32, in this order
    for make in (refuse, refuse_unless_first):
        with pytest.raises(ranks.AgreedError, match=r"^no$" if make is refuse else r"^rank 1 on \S+: no$"):
            ranks.agreed(make)
    with pytest.raises(ranks.AgreedError, match=r"^no$"):
        ranks.from_first(refuse)
    ranks.wait()


def test_three_processes_share_and_agree() -> None:
    assert in_ranks(3, work_together) == [0, 0, 0]
