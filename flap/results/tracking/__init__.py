"""Track runs with Weights & Biases or MLflow, or not at all.

A tracker is a service that shows runs, such as Weights & Biases. flap sends to the tracker a copy
of the results in the run's folder. If the tracker fails, flap logs one warning and the run
continues. The packages wandb and mlflow are imported inside functions, because importing them takes
almost a second. docs/tracking.md lists the names of all values that are sent to the tracker.
"""

from flap.results.tracking.base import JobInfo, NoTracking, TrackedRun, Tracking
from flap.results.tracking.in_mlflow import MLflow
from flap.results.tracking.weights_and_biases import Wandb

__all__ = ["JobInfo", "MLflow", "NoTracking", "TrackedRun", "Tracking", "Wandb"]
