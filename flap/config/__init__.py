"""The configuration of a run: its types, defaults, checks and error messages.

Importing it is fast, so that `--cfg job` and `--help` answer at once: it does not import torch, and it does not read
the network, the environment or the disk. Every error names the field, its value and what is allowed.
"""

from flap.config.compose import build, literal, refuse, settled_by, timeout, typed
from flap.config.messages import (
    explain,
    gigabytes,
    help_text,
    how_to_install,
    one_line,
    require,
    shown,
    without_credentials,
)
from flap.config.methods import composing, name_method
from flap.config.schema import (
    CalibrationConfig,
    FlapConfig,
    ModelConfig,
    TargetConfig,
    config_dir,
    targets,
)

__all__ = [
    "CalibrationConfig", "FlapConfig", "ModelConfig", "TargetConfig", "build", "composing",
    "config_dir", "explain", "gigabytes", "help_text", "how_to_install", "literal", "name_method",
    "one_line", "refuse", "require", "settled_by", "shown", "targets", "timeout",
    "typed", "without_credentials",
]  # fmt: skip
