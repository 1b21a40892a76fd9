"""recover=reconstruct: training on the calibration windows alone, so that nothing is read that pruning has not read."""

import math
from dataclasses import asdict, dataclass

from flap.config import require
from flap.data import HELD_OUT
from flap.method.recovery.base import Recovery


@dataclass(frozen=True)
class Reconstruction:
    """The options of a training on the calibration windows; `Recovery` has the others explained.

    The windows on which fits and searches are judged are held out here as well.
    """

    epochs: int  # times that each window is trained on, 1 or more
    learning_rate: float
    batch_size: int | None = None
    words: int | None = None
    patience: int = 2
    gradient_checkpointing: bool = False

    def on(self, num_samples: int, lengths: list[int]) -> Recovery:
        """Return the training on so many calibration windows. lengths: of their kinds, in tokens.

        Raises:
            ValueError: an option is out of range, windows have several lengths, or there are too few.
        """
        require(len(lengths) == 1, "calibration.seq_len", lengths, "one length with recover=reconstruct")
        require(num_samples > 1, "calibration.num_samples", num_samples, "2 or more with recover=reconstruct")
        held_out = math.ceil(num_samples / HELD_OUT)
        fitting = num_samples - held_out
        allowed = f"1 to {fitting}, the calibration windows that are not held out"
        valid = self.batch_size is None or 1 <= self.batch_size <= fitting
        require(valid, "recover.batch_size", self.batch_size, allowed)
        return Recovery(
            dataset=None, tokens=fitting * lengths[0], seq_len=lengths[0], held_out=held_out, use="calibration",
            **asdict(self),
        )  # fmt: skip
