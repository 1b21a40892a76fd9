"""Recovery: the compressed model is trained to predict what the dense one predicts.

It is off by default.
"""

from flap.method.recovery.base import Reconstruction, Recovery

__all__ = ["Reconstruction", "Recovery"]
