"""How much each unit matters: one file a metric."""

from flap.importance.base import Metric, Scores, joined, score_layers
from flap.importance.ifv import IFV
from flap.importance.magnitude import Magnitude
from flap.importance.obs import OBS
from flap.importance.random import Random
from flap.importance.wanda import Wanda
from flap.importance.wifn import WIFN
from flap.importance.wifv import WIFV

__all__ = [
    "IFV", "OBS", "WIFN", "WIFV", "Magnitude", "Metric", "Random", "Scores", "Wanda", "joined", "score_layers",
]  # fmt: skip
