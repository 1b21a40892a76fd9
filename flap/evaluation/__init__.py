"""What a model is worth, as named numbers."""

from flap.evaluation.base import Comparison, Evaluator, Task
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.perplexity import Perplexity, perplexity
from flap.evaluation.suite import Suite, prepare

__all__ = ["Comparison", "Efficiency", "Evaluator", "Perplexity", "Suite", "Task", "perplexity", "prepare"]
