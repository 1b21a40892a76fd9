"""What a model is worth, as named numbers."""

from flap.evaluation.base import Evaluator, Task
from flap.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Evaluator", "Perplexity", "Task", "perplexity"]
