"""Track runs with Weights & Biases or MLflow, or not at all.

A tracker gets a copy of the run's results. All results are also in the run's folder. If the tracker
fails, flap logs one warning and the run continues. The packages wandb and mlflow are imported
inside functions, because importing them takes almost a second. docs/tracking.md lists the names of
all values that are tracked.
"""

from flap.results.tracking.base import JobInfo, NoTracking, TrackedRun, Tracking
from flap.results.tracking.in_mlflow import MLflow
from flap.results.tracking.weights_and_biases import Wandb

__all__ = ["JobInfo", "MLflow", "NoTracking", "TrackedRun", "Tracking", "Wandb"]
