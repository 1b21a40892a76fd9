"""Check whether the Hugging Face hub can be reached, and read only the local cache if it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from flap.runtime.temporary_state import replaced

SECONDS = 5  # seconds to wait for an answer from the hub


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers a request. The result is cached for the whole process.

    Without a network, `huggingface_hub` and `datasets` would retry their requests for half a minute
    or more for each model and data set. Callers use this check to avoid these requests.
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
    """Make libraries read only the hub's local cache in a `with` block, if the hub does not answer.

    The environment variable HF_HUB_OFFLINE is not set, because it would restrict the whole process
    to the local cache, and not only the `with` block.

    libraries: modules with a flag HF_HUB_OFFLINE, such as `datasets.config`. If the hub does not
        answer, the flags of these modules and of `huggingface_hub` are true in the block.
    """
    if hub_reachable():
        yield
        return
    import huggingface_hub

    with replaced("HF_HUB_OFFLINE", True, huggingface_hub.constants, *libraries):
        yield
