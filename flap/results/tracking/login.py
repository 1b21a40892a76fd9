"""The mode, the API key and the environment variables of Weights & Biases (W&B)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flap.config import one_line

MODES = ("auto", "online", "offline")


def resolve_mode(mode: str) -> str:
    """Return the mode in which W&B runs, given the value of the option `tracking.mode`.

    "online" and "offline" are returned unchanged. For "auto", the result is the mode that the
    environment variable WANDB_MODE or the command `wandb offline` has set. If neither has set a
    mode, the result is "online". But if W&B has no API key, "auto" never gives "online", and the
    result is "offline" instead.
    """
    import wandb

    if mode != "auto":
        return mode
    configured = wandb.setup().settings.mode
    return "offline" if configured == "online" and not _has_key() else configured


def _has_key() -> bool:
    """Return whether W&B finds an API key in the environment, in netrc or in its settings."""
    # The public wandb.login() cannot be used here: it finds no key while a run is open, and it
    # rewrites the user's settings file.
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    # unlike `wandb.setup`, `singleton` does not start W&B's background service
    host = str(wandb_setup.singleton().settings.base_url)
    with environment(WANDB_SILENT="true"):
        auth = wbauth.authenticate_session(
            host=host, source="flap", prompt=False, update_session=False
        )
    return auth is not None


def require_key() -> None:
    """Check that W&B has a valid API key.

    Raises:
        ValueError: there is no key, or the key is invalid.
    """
    try:
        problem = "" if _has_key() else "no W&B key is configured"
    except Exception as error:  # W&B raises an error if the key is invalid
        problem = one_line(error)
    if problem:
        remedy = "run `wandb login`, set WANDB_API_KEY, or take tracking.mode=offline"
        raise ValueError(f"tracking.mode=online: {problem}; {remedy}")


@contextmanager
def environment(**defaults: str) -> Iterator[None]:
    """Set environment variables during a `with` block. Variables that are already set are kept."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
