"""The importance metrics: they score how much each channel matters. One file for each metric."""

from flap.importance.base import Metric, Scores, score_layer, score_layers
from flap.importance.ifv import IFV
from flap.importance.magnitude import Magnitude
from flap.importance.obs import OBS
from flap.importance.random import Random
from flap.importance.wanda import Wanda
from flap.importance.wifn import WIFN
from flap.importance.wifv import WIFV

__all__ = [
    "IFV", "OBS", "WIFN", "WIFV", "Magnitude", "Metric", "Random", "Scores", "Wanda", "score_layer",
    "score_layers",
]  # fmt: skip
