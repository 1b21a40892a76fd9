"""Evaluate a model: each measurement gives named numbers."""

from flap.evaluation.base import Comparison, Evaluator, Task
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.perplexity import Perplexity
from flap.evaluation.suite import Suite, prepare_suite

__all__ = ["Comparison", "Efficiency", "Evaluator", "Perplexity", "Suite", "Task", "prepare_suite"]
