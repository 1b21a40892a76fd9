"""Track runs with Weights & Biases or MLflow, or not at all.

The run's files come first: the tracker gets a copy, and its errors are only logged as one warning.
The packages are imported inside functions, because that takes most of a second. The names of all
that is tracked: docs/tracking.md.
"""

from flap.results.tracking.base import JobInfo, NoTracking, TrackedRun, Tracking
from flap.results.tracking.in_mlflow import MLflow
from flap.results.tracking.weights_and_biases import Wandb

__all__ = ["JobInfo", "MLflow", "NoTracking", "TrackedRun", "Tracking", "Wandb"]
