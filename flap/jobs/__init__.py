"""The job of a run: all that it needs besides weights, made and checked before they are read."""

from flap.jobs.choices import Choices, choose
from flap.jobs.job import Job

__all__ = ["Choices", "Job", "choose"]
