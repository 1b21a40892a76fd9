"""Where else a run's numbers go: nowhere, or to Weights & Biases.

Files come first: W&B mirrors what a run has written, and whatever W&B raises ends in one warning. It is imported inside
functions, because that takes most of a second. What is mirrored, under which names: docs/tracking.md.
"""

from flap.reporting.tracker.base import JobInfo, NoTracking, TrackedRun, Tracking
from flap.reporting.tracker.records import kept_id, legal_id, summary
from flap.reporting.tracker.weights_and_biases import Wandb

__all__ = ["JobInfo", "NoTracking", "TrackedRun", "Tracking", "Wandb", "kept_id", "legal_id", "summary"]
