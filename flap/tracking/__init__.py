"""Track runs with Weights & Biases, or not at all.

The run's files come first: W&B gets a copy, and an error of W&B is only logged as one warning. W&B is imported inside
functions, because the import takes most of a second. The names of all that is tracked are in docs/tracking.md.
"""

from flap.tracking.base import JobInfo, NoTracking, TrackedRun, Tracking, summary
from flap.tracking.weights_and_biases import Wandb, kept_id, legal_id

__all__ = ["JobInfo", "NoTracking", "TrackedRun", "Tracking", "Wandb", "kept_id", "legal_id", "summary"]
