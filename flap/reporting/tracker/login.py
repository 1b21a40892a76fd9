"""Whether W&B can be reached as somebody: modes, keys, and the environment that it reads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flap.errors import one_line

MODES = ("auto", "online", "offline")


def resolve_mode(mode: str) -> str:
    """What auto means here; WANDB_MODE and `wandb offline` are heard, too."""
    import wandb

    if mode != "auto":
        return mode
    configured = wandb.setup().settings.mode
    return "offline" if configured == "online" and not _key_found() else configured


def _key_found() -> bool:
    """Whether W&B finds a key in the environment, in netrc or in its settings; nobody is asked for one."""
    # wandb.login() is public, but finds none while a run is open, and rewrites the user's settings file
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    with environment(WANDB_SILENT="true"):
        host = wandb_setup.singleton().settings.base_url
        found = wbauth.authenticate_session(host=host, source="flap", prompt=False, update_session=False)
    return found is not None


def require_key() -> None:
    try:
        missing = "" if _key_found() else "no W&B key is configured"
    except ImportError:  # no reason to refuse the run; its start will say so
        return
    except Exception as error:  # a key that W&B does not take for one
        missing = one_line(error)
    if missing:
        remedy = "run `wandb login`, set WANDB_API_KEY, or take tracking.mode=offline"
        raise ValueError(f"tracking.mode=online: {missing}; {remedy}")


@contextmanager
def environment(**defaults: str) -> Iterator[None]:
    """Set what the environment does not set itself, for as long as the block lasts."""
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
