"""A run: what it needs besides weights, made and checked before they are read, its stages, and its report."""

from flap.runs.choices import Choices, choose
from flap.runs.preparation import check_room, prepare
from flap.runs.run import Run

__all__ = ["Choices", "Run", "check_room", "choose", "prepare"]
