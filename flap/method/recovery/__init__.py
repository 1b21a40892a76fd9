"""Recovery: train the compressed model to make the same predictions as the dense model.

The compressed model is the model after units (heads, neurons or experts) were removed. The dense
model is the model before that. Recovery runs after compression, and is off by default.
"""

from flap.method.recovery.base import Reconstruction, Recovery

__all__ = ["Reconstruction", "Recovery"]
