"""Signs of life: each process of a run gives one every second, and ends soon after another one has failed or is silent.

They are in the store of torch.distributed. A thread gives them, which goes on while torch computes or another process
works alone, but not in a process that is frozen.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from os import environ
from pathlib import Path

from flap.storage import ranks

# Without a new sign, a second each. Only seconds in which this process runs are counted, so that all may be stopped.
LOOKS = 20
LOOKS_WHEN_LOST = 4  # where it is known that one has ended, but not which
INTERVAL = 1.0  # between signs, in seconds


class Heartbeats:
    """The signs of life of all processes of a run.

    lost: called in a thread with the names of those that are silent, or none if one has failed and said why; and
    whether it is for this process to say so.
    """

    def __init__(self, lost: Callable[[list[str], bool], None]) -> None:
        from torch.distributed import TCPStore

        host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        self.store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LOOKS))  # a connection of its own
        self.rank, self.lost, self.looks, self.failed = ranks.rank(), lost, LOOKS, False
        start = environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store, with the signs of failure
        self.keys = [f"flap-sign-{start}-{rank}" for rank in range(ranks.size())]
        self._give("")
        self.signs: list[bytes] = self.store.multi_get(self.keys)  # once all have begun
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._look)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Give no more signs. Python aborts where it ends while a thread is within the store."""
        self.ended.set()
        for thread in self.threads:
            thread.join(LOOKS)  # the store of a machine that is gone does not answer

    def fail(self) -> None:
        """Let the others know that this process has failed, and has said why."""
        self.failed = True
        with suppress(RuntimeError):
            self._give("")

    def _give(self, sign: str) -> None:
        self.store.set(self.keys[self.rank], json.dumps([ranks.name(), self.failed, sign]))

    def _talk(self) -> None:
        """Give signs and read those of the others, until the store ends; wait for ever if its machine is gone."""
        with suppress(RuntimeError):
            while not self.ended.wait(INTERVAL):
                self._give(_sign())
                self.signs = self.store.multi_get(self.keys)

    def _look(self) -> None:
        """Wait until a process has failed or is silent. If even this one is, it cannot reach the first one's store."""
        seen, missed = self.signs, [0] * len(self.keys)
        while not self.ended.wait(INTERVAL):
            now = self.signs
            missed = [old + 1 if a == b else 0 for old, a, b in zip(missed, seen, now, strict=True)]
            seen, names = now, [json.loads(sign) for sign in now]
            silent = [k for k, looks in enumerate(missed) if looks >= self.looks]
            if any(failed for k, (_, failed, _) in enumerate(names) if k != self.rank):
                self.lost([], False)
            elif silent:
                blamed = [0] if self.rank in silent else silent
                speaks = self.rank == min({*range(len(names))} - {*blamed}, default=self.rank)
                self.lost([names[k][0] for k in blamed], speaks)


def _sign() -> str:
    """Return another text each time, unless the main thread has been in one wait for a disk that does not answer."""
    status = Path("/proc/self/status").read_text() if sys.platform == "linux" else ""
    waits = re.search(r"^State:\s+D.*^(voluntary_ctxt_switches:\s+\d+)", status, re.MULTILINE | re.DOTALL)
    return waits[1] if waits else str(time.monotonic_ns())
