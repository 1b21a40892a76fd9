import errno
import fcntl
import os

import pytest


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS], ids=["NFS", "Lustre"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system that has no locks, like some network file systems."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
