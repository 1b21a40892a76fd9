"""The configuration of a run: its types, defaults, checks and error messages.

Importing this package is fast, so that `--cfg job` and `--help` answer at once. The import does not
load torch or use the network, and it reads no environment variables and no files. Every error
message names the field, its value and the allowed values.
"""

from flap.config.arguments import check_arguments, config_folders, options_first, with_values
from flap.config.checks import (
    OBJECTIVES,
    check_measurements,
    objectives,
    refuse,
    settled_by,
    timeout,
    typed,
)
from flap.config.explanations import explain
from flap.config.messages import (
    did_you_mean,
    gigabytes,
    help_text,
    how_to_install,
    one_line,
    require,
    require_counts,
    shown,
)
from flap.config.methods import CUSTOM, composing, name_method
from flap.config.objects import build, literal
from flap.config.output import protect_output, protect_secrets_of
from flap.config.schema import (
    CalibrationConfig,
    FlapConfig,
    ModelConfig,
    TargetConfig,
    config_dir,
    shipped_folder,
    targets,
)
from flap.config.secrets import has_secrets, recorded, redact, redacted, with_quoted_password

__all__ = [
    "CUSTOM",
    "OBJECTIVES",
    "CalibrationConfig",
    "FlapConfig",
    "ModelConfig",
    "TargetConfig",
    "build",
    "check_arguments",
    "check_measurements",
    "composing",
    "config_dir",
    "config_folders",
    "did_you_mean",
    "explain",
    "gigabytes",
    "has_secrets",
    "help_text",
    "how_to_install",
    "literal",
    "name_method",
    "objectives",
    "one_line",
    "options_first",
    "protect_output",
    "protect_secrets_of",
    "recorded",
    "redact",
    "redacted",
    "refuse",
    "require",
    "require_counts",
    "settled_by",
    "shipped_folder",
    "shown",
    "targets",
    "timeout",
    "typed",
    "with_quoted_password",
    "with_values",
]
