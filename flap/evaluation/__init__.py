"""Evaluate models. Each evaluator measures one or more properties, such as the perplexity."""

from flap.evaluation.base import Evaluator, Measurement, Task
from flap.evaluation.divergence import Divergence
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.perplexity import Perplexity
from flap.evaluation.suite import prepare_tasks

__all__ = [
    "Divergence",
    "Efficiency",
    "Evaluator",
    "Measurement",
    "Perplexity",
    "Task",
    "prepare_tasks",
]
