"""Check whether the Hugging Face hub answers, and read from the local cache if it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from flap.runtime.temporary_state import replaced

SECONDS = 5  # seconds to wait for an answer from the hub


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers. A process asks the hub only once.

    Without a network, other libraries would retry for half a minute or more for each model and data
    set. This check avoids these retries.
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
    """If the hub does not answer, read only from the local cache in a `with` block.

    The environment variable HF_HUB_OFFLINE=1 has the same effect on the whole process.

    libraries: modules with a flag HF_HUB_OFFLINE, such as `datasets.config`. The flags of these
        modules and of `huggingface_hub` are set.
    """
    if hub_reachable():
        yield
        return
    import huggingface_hub

    with replaced("HF_HUB_OFFLINE", True, huggingface_hub.constants, *libraries):
        yield
