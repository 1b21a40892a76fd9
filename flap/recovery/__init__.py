"""Recovery: training after compression, off by default. The compressed model learns the dense model's predictions."""

from flap.recovery.base import Recovery
from flap.recovery.memory import bytes_to_train
from flap.recovery.reconstruction import Reconstruction
from flap.recovery.windows import recovery_windows, training_windows

__all__ = ["Reconstruction", "Recovery", "bytes_to_train", "recovery_windows", "training_windows"]
