"""Recovery: training after compression, off by default. The compressed model learns the dense model's predictions."""

from flap.recovery.base import Recovery
from flap.recovery.distillation import recover
from flap.recovery.memory import check_room_to_train
from flap.recovery.windows import recovery_windows

__all__ = ["Recovery", "check_room_to_train", "recover", "recovery_windows"]
