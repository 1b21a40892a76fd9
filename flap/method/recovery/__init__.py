"""Recovery: training after compression, off by default. The compressed model learns the dense model's predictions."""

from flap.method.recovery.base import Reconstruction, Recovery

__all__ = ["Reconstruction", "Recovery"]
