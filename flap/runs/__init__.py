"""A run: what it needs besides weights, made and checked before they are read, and its stages."""

from flap.runs.choices import Choices, choose
from flap.runs.run import Run

__all__ = ["Choices", "Run", "choose"]
