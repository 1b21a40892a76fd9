"""Recovery: training after compression, off by default. The compressed model learns the dense model's predictions."""

from flap.method.recovery.base import Reconstruction, Recovery
from flap.method.recovery.windows import training_windows

__all__ = ["Reconstruction", "Recovery", "training_windows"]
