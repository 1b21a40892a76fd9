"""The hub, and reading from the local cache alone where the hub does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from flap.runtime.temporary_state import replaced

SECONDS = 5  # the longest wait for an answer


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers. It is asked once.

    Without a network, the libraries try again and again: for half a minute or more for each model
    or data set.
    """
    import huggingface_hub  # imported here, because most runs read nothing from the hub

    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.utils.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # the HTTP library raises errors of many types
        return False
    return True


@contextmanager
def offline_without_hub(*libraries: Any) -> Iterator[None]:
    """Inside the block, read only from the local cache if the hub does not answer.

    HF_HUB_OFFLINE=1 has this effect on a whole process.

    libraries: Modules of other libraries that have a flag HF_HUB_OFFLINE, such as
        `datasets.config`.
    """
    if hub_reachable():
        yield
        return
    import huggingface_hub

    with replaced("HF_HUB_OFFLINE", True, huggingface_hub.constants, *libraries):
        yield
