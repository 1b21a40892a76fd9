"""Evaluate a model: each measurement gives named numbers."""

from flap.evaluation.base import Evaluator, Measurement, Task
from flap.evaluation.divergence import Divergence
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.perplexity import Perplexity
from flap.evaluation.suite import Suite, prepare_suite

__all__ = [
    "Divergence",
    "Efficiency",
    "Evaluator",
    "Measurement",
    "Perplexity",
    "Suite",
    "Task",
    "prepare_suite",
]
