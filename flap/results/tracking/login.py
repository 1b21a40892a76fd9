"""The mode, the key and the environment variables of W&B."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flap.config import one_line

MODES = ("auto", "online", "offline")


def resolve_mode(mode: str) -> str:
    """Return the mode of W&B.

    "auto" is offline if there is no key, else the mode that WANDB_MODE and `wandb offline` set.
    """
    import wandb

    if mode != "auto":
        return mode
    configured = wandb.setup().settings.mode
    return "offline" if configured == "online" and not _has_key() else configured


def _has_key() -> bool:
    """Return whether W&B finds a key in the environment, in netrc or in its settings."""
    # wandb.login() is public, but finds no key while a run is open, and rewrites the user's
    # settings file
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = str(wandb_setup.singleton().settings.base_url)  # does not start W&B's service
    with environment(WANDB_SILENT="true"):
        auth = wbauth.authenticate_session(
            host=host, source="flap", prompt=False, update_session=False
        )
    return auth is not None


def require_key() -> None:
    """Check that W&B has a valid key.

    Raises:
        ValueError: there is no key, or W&B refuses it.
    """
    try:
        problem = "" if _has_key() else "no W&B key is configured"
    except Exception as error:  # W&B refuses the key
        problem = one_line(error)
    if problem:
        remedy = "run `wandb login`, set WANDB_API_KEY, or take tracking.mode=offline"
        raise ValueError(f"tracking.mode=online: {problem}; {remedy}")


@contextmanager
def environment(**defaults: str) -> Iterator[None]:
    """Set those environment variables that are not set yet, while the block lasts."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
