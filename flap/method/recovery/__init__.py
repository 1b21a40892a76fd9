"""Recovery: train the compressed model to make the same predictions as the dense model.

Recovery runs after compression, and is off by default.
"""

from flap.method.recovery.base import Reconstruction, Recovery

__all__ = ["Reconstruction", "Recovery"]
